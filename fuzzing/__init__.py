"""``scripts/fuzz``: damaged and absurd model files against the commands that read them.

Every case must end as a user can bear it: the model is imported, or refused in one line with exit status 2. A traceback, a
crash, a hang or a memory blow-up is a defect.
"""
