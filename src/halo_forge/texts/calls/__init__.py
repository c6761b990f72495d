"""Tool calls as models write them: read from text, held against their tools' schemas, compared with what was wanted.

Pure functions of text and JSON values; nothing here runs what a model said.

record.py  a call, and what an answer says     json_forms.py, markup_forms.py, pythonic.py  one reader a way of writing
formats.py the table of known formats          schemas.py  JSON Schema of tools, arguments held against it
match.py   names and arguments against the wanted ones, as BFCL's checker compares them
"""
