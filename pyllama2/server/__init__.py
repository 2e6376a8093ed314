"""The server behind `python -m pyllama2.serve`: OpenAI's HTTP interface on one Llama.

    HTTP -> observe (id, log, metrics) -> guard (Host, Origin, key, size) -> app (routes) -> requests (fields)
         -> service: tokens and streams -> desk: who runs, who waits -> Background, a thread that drives the scheduler
         <- answers: OpenAI's JSON, whole or as events

Its files load FastAPI, uvicorn, pydantic and prometheus-client, so nothing outside this folder loads them at import.
"""
