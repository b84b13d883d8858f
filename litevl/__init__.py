"""litevl: a vision-language server behind the OpenAI chat API, on unmodified transformers models.

Read in this order: `sequence` (the nouns), `engine/engine.py` (schedule, launch, collect),
`models/processor.py` (messages and pixels to ids), `api/chat.py` (the life of one answer),
`cli.py` (where the parts meet).
"""

__version__ = "0.1.0"
