"""The text that the bundled demo model learns from: short stories for children, composed by a grammar.

    story.py          tell(), which composes a story
    templates.py      the notation
    cast.py           characters and their pronouns
    openings.py       how stories begin, and phrases that many plots share
    plots_*.py        the plots

Every sentence was written for this project and may be used under its licence.
"""
