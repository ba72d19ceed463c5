"""Evaluation: trained policies, episodes without exploration, videos, the background evaluation of a run."""
