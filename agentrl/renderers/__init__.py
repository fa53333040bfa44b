"""Renderers turn messages into token ids and model text back into messages."""
