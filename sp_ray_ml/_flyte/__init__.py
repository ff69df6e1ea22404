"""The pipeline as tasks of Flyte: what `sp_ray_ml.flyte` is made of."""
