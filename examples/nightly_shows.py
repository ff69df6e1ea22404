"""Recommendations of shows, made anew every night by Flyte 2 from the config that a laptop runs.

Here:      flyte run --local examples/nightly_shows.py nightly
On Flyte:  flyte deploy --image sp-ray=REGISTRY/IMAGE:TAG examples/nightly_shows.py environment

What has not changed since last night (tables, settings, code) is not computed again; the table is written once.
"""

import os

import flyte
import flyte.models
import flyte.notify

from sp_ray_ml.flyte import pipeline_environment, pipeline_task

TEAM = os.environ.get("SHOWS_TEAM", "shows-team@example.com")

environment = pipeline_environment(
    "examples/shows.yaml",
    triggers=[
        flyte.Trigger(
            "nightly",
            flyte.Cron("0 3 * * *", timezone="Europe/Berlin"),
            description="New recommendations before the day begins",
            notifications=flyte.notify.Email(
                on_phase=(flyte.models.ActionPhase.FAILED, flyte.models.ActionPhase.TIMED_OUT),
                recipients=[TEAM],
                subject="The nightly shows were not made: {{.Run.Name}}",
                body="{{.Phase}}: {{.Error}}",
            ),
        )
    ],
    resources=flyte.Resources(cpu=2, memory="8Gi"),
    retries=1,
)
nightly = pipeline_task(environment)
