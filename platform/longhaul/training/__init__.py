"""How a run goes: the loop, the two engines, schedules, and the way into Ray Train."""
