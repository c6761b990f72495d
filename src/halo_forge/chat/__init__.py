"""Conversation -> Example: one rendering by the model's own template, and the proof of what is trained in it.

messages.py      conversation -> template messages -> text      template.py  what a template writes, learnt once
origin.py        which characters are content                   spans.py     what is trained, derived twice
tokens.py        text -> ids; specials only from the template   example.py   the whole way, and the refusals
known.py         what is known of a tokenizer                   reasoning.py keep, strip, require
store.py         files      view.py  what a person sees         fingerprints.py  hashes

Many rows at once, with the same results: batch_encode.py, which joins what skeleton.py (a template's literals, proven
by trace.py) and byte_tokens.py (where tokens begin, without offsets) know.
"""

from halo_forge.chat.batch_encode import EncodedBatch
from halo_forge.chat.example import ChatEncoder, Encoded, conversation_to_example, prompt_and_reference
from halo_forge.chat.fingerprints import template_sha256, tokenizer_sha256
from halo_forge.chat.records import Conversation, Example, MediaPart, Message, SourceRef, TextPart, ToolCall
from halo_forge.chat.store import (
    ExampleStore,
    read_conversations,
    read_examples,
    write_conversations,
    write_examples,
)
from halo_forge.chat.view import (
    TokenView,
    escape_controls,
    first_batch_text,
    token_view,
    view_as_ansi,
    view_as_json,
)

__all__ = [
    "ChatEncoder",
    "Conversation",
    "Encoded",
    "EncodedBatch",
    "Example",
    "ExampleStore",
    "MediaPart",
    "Message",
    "SourceRef",
    "TextPart",
    "TokenView",
    "ToolCall",
    "conversation_to_example",
    "escape_controls",
    "first_batch_text",
    "prompt_and_reference",
    "read_conversations",
    "read_examples",
    "template_sha256",
    "token_view",
    "tokenizer_sha256",
    "view_as_ansi",
    "view_as_json",
    "write_conversations",
    "write_examples",
]
