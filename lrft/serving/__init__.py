"""Answers of a trained model: from files, in a conversation, and over HTTP."""
