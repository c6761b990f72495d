"""What a text shows by itself, for every room: no torch, no files but our own lists.

privacy.py   personal data and secrets, by their shapes      leaks.py       ... of a prompt, told by its answer
toxicity.py  a lexical toxicity score                        toxic.py       the sentence of an answer that has it
refusal.py   an answer that refuses                          abstention.py  an answer that says it does not know
languages.py in which of a few languages it seems to be      telling_words.py  what tells some texts from others
json_documents.py, json_schema.py  JSON, and what it must look like      numbers.py  the final number
"""
