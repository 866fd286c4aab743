"""
Read a plan
===========

What :func:`tdcompress.compress` decides is a plan, which can be had alone: looked at, drawn, edited and kept.
"""

import tdcompress as td
from examples.trained import trained_network

model = trained_network("garipov-fmnist")

# %%
# A layer has a curve of error against parameters for every method. One number, the price of a parameter, picks a point
# on each of them, so that the budget is met.

plan = td.plan(model, 0.9, methods=("tucker", "tt", "svd"), layers="conv[2-6]")
print(plan)

# %%
# Drawn, a panel a layer and a line a method; the cross is what was chosen. Where lines lie together the method does not
# matter; where one falls steeply, parameters are worth most.

figure = plan.plot()
figure

# %%
# Every point is there to read. What would ``conv2`` cost at half of what it got?

chosen = plan["conv2"].choice
cheaper = [option for option in plan["conv2"].options if option.cost <= chosen.cost / 2]
for option in (chosen, min(cheaper, key=lambda option: option.error)):
    print(f"{option.method} {option.rank}: {option.parameters} parameters, error {option.error:.3f}")

# %%
# An edit fixes a layer as you say and leaves the others. What would cost more than the budget is refused.

edited = plan.edit("conv2", "svd", ratio=0.8)
print(f"{edited.cost[1]:.0f} of {edited.budget:.0f} parameters")
try:
    plan.edit("conv2", "svd", ratio=0.5)
except td.CompressionError as error:
    print(error)

# %%
# JSON keeps a plan; ``apply`` does what it says, after it has checked that the model is the one that was planned for.

assert td.Plan.from_json(edited.to_json()) == edited
small = edited.apply(model)
print(td.report(small))
