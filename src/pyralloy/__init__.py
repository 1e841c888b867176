"""Mixture density networks as Pyro models."""
