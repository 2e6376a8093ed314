"""Quantization for the inputs that a model's matrices really get, on a text: the weights lose far less.

    entry.py        quantize()
    text.py         the text's tokens in windows; what is wrong with a text
    own_text.py     a text that the model writes itself
    layers.py       two residual streams, of the model and of the quantized model, through one layer after another
    solver.py       the best codes of a matrix: correction and GPTQ
    products.py     products of large matrices
    estimate.py     how long it takes
    survey.py       what each type would lose in each matrix
    budget.py       a type for each matrix, within so many bits a weight
    work.py         what is done with each layer
    work_folder.py  finished layers outlive an interruption
    request.py      one calibration: its text, its layers, what is kept after an interruption
    quantizing.py   the flow: layers in order, what is lost on held-out windows, the file

docs/quantization.md has the formulas, and what each part gains.
"""

from .entry import quantize

__all__ = ["quantize"]
