"""The cores composed: one pure object that the agent and the simulator drive."""
