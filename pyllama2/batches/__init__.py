"""Many requests from a file, without a server: `python -m pyllama2.batch`.

inputs: lines of JSON, or a column of CSV or Parquet, one at a time -> Item
answering: an Item to OpenAI's JSON, by the same checks and the same answers as the server's (server/service.py)
results: a file that grows by whole lines, and knows which items it has
"""
