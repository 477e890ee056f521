"""Do readable rules predict where features are active, and how many tokens does a feature cover?"""
