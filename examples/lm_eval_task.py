"""A model for lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), on the Python API.

pip install lm_eval
python examples/lm_eval_task.py [MODEL] [TASK...], such as: python examples/lm_eval_task.py smollm2 arc_easy
"""

import sys

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from pyllama2 import Llama, SamplingParams


class PyllamaLM(LM):
    """Scores continuations and texts, and generates answers."""

    def __init__(self, llama):
        super().__init__()
        self.llama = llama

    def loglikelihood(self, requests):
        """For each (context, continuation): its log-probability, and whether it is the greedy one."""
        return [self._scored(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests):
        """The log-probability of each text."""
        return [self._scored("", request.args[0])[0] for request in requests]

    def generate_until(self, requests):
        """The answer to each (prompt, options), all decoded together."""
        of_each = [
            {"stop": options["until"], "max_tokens": options.get("max_gen_toks", 256)}
            for _, options in (request.args for request in requests)
        ]
        params = [SamplingParams(temperature=0, **one) for one in of_each]
        return [str(text) for text in self.llama.generate([request.args[0] for request in requests], params)]

    def _scored(self, context, continuation):
        n_context = len(self.llama.tokenize(context)) or 1  # a text needs a token to begin with
        tokens = self.llama.tokenize(context + continuation)
        entries = self.llama.score(tokens[-self.llama.n_ctx :], top=1)[n_context - len(tokens) :]
        return sum(entry.logprob for entry in entries), all(entry.token_id == entry.top[0][0] for entry in entries)


with Llama(sys.argv[1] if len(sys.argv) > 1 else None) as llama:
    model = PyllamaLM(llama)
    if tasks := sys.argv[2:]:
        from lm_eval import simple_evaluate

        print(simple_evaluate(model, tasks=tasks)["results"])
    for ending in (" time", " banana"):
        request = Instance("loglikelihood", {}, ("Once upon a", ending), 0)
        print(f"{ending!r}:", *model.loglikelihood([request])[0])
    print(model.generate_until([Instance("generate_until", {}, ("One day", {"until": ["."]}), 0)]))
