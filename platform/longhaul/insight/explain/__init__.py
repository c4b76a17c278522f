"""Why a classifier answers what it does: heat maps, how stable they are across resolutions, whether they depend on the model."""
