"""Producers: messages are made, published until they are confirmed, and bounded."""
