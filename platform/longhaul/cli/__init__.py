"""The command line: every verb is one call into a room. Heavy imports happen inside the verbs, so that help is quick."""
