"""How a step is taken: plain torch or DeepSpeed, behind one interface."""
