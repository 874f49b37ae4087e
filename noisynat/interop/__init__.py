"""Bridges to other libraries. Each is a module of its own, which imports its library only when it is used."""
