"""What a run does about spikes and bad samples, and about memory that does not suffice."""
