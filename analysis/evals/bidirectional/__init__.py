"""Bidirectionality of signed codes: are features used with both signs, and do these mean opposite things?"""
