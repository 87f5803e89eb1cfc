"""Versions of models in a store and in the cache of this machine."""
