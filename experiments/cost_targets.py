"""The targets of what computing on shares costs: operations, functions, products, a step, and networks."""
