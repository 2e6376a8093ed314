# The CPU backend and the bundled model, for a user without rights:
#     docker build -t pyllama2 .
#     docker run --rm pyllama2 generate "Once upon a time"
#     docker run --rm -it -v "$PWD/models:/models:ro" pyllama2 chat -m /models/NAME.gguf

FROM python:3.13-slim AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.13-slim
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 llama
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
USER 10001
WORKDIR /home/llama
ENTRYPOINT ["pyllama2"]
CMD ["--help"]
