"""Fuzzing: every place where a file or a text of a stranger enters, called with damaged ones.

    target.py    what a target is, and files in memory to call readers with
    targets.py   the table of them
    mutation.py  damages: of bytes, and of JSON inside of bytes
    corpus/      inputs that once showed a defect, one folder per target

`python scripts/fuzz.py` runs them for as long as one likes; test_corpus.py briefly, with every run of the tests.
"""
