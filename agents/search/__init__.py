"""The search agent of "ReST meets ReAct": a state machine of small steps."""
