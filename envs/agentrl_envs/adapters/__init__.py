"""Environments of other people's packages, each behind a scheme: `env.name = "SCHEME:REST"`.

A package is imported when its scheme is named and never before. No module here knows another.
"""
