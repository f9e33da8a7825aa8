"""The time course of gradient flow on one layer of linear self-attention, in closed form where it has one."""
