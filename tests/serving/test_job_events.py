"""Events of jobs: a slow reader loses what is replaced, and nothing else."""

import threading

from imagen_jax.serving.job_events import EventHub
from imagen_jax.serving.jobs import Event


def names(subscription):
    events = []
    while (event := subscription.get(0)) is not None:
        events.append((event.name, event.data))
    return events


def test_events_reach_all_who_follow():
    hub, notified = EventHub(), []
    one, two = hub.subscribe("job", lambda: notified.append(1)), hub.subscribe("job")
    other = hub.subscribe("other")
    first = {"step": 1, "steps": 3}
    hub.publish("job", Event("step", first))
    assert names(one) == names(two) == [("step", first)]
    assert names(other) == [] and notified == [1]
    assert hub.followed() == {"job", "other"} and hub.count() == 3


def test_a_slow_reader_keeps_images_and_the_end():
    hub = EventHub()
    slow = hub.subscribe("job")
    for step in range(1000):
        hub.publish("job", Event("step", {"step": step, "steps": 999}))
        hub.publish("job", Event("preview", step))
        if step % 500 == 0:
            hub.publish("job", Event("image", step))
    hub.publish("job", Event("done", None))
    assert names(slow) == [
        ("image", 0),
        ("image", 500),
        ("step", {"step": 999, "steps": 999}),
        ("preview", 999),
        ("done", None),
    ]
    assert hub.dropped_previews == 999


def test_get_waits_until_there_is_an_event_or_it_is_closed():
    hub = EventHub()
    subscription = hub.subscribe("job")
    received = []
    reader = threading.Thread(target=lambda: received.extend([subscription.get(30), subscription.get(30)]))
    reader.start()
    hub.publish("job", Event("done", 1))
    while not received and reader.is_alive() and subscription._events:
        pass
    subscription.close()
    reader.join(30)
    assert not reader.is_alive() and received[-1] is None
    hub.publish("job", Event("done", 2))
    assert subscription.get(0) is None and hub.followed() == set()


def test_previews_are_for_those_who_want_them():
    hub = EventHub()
    waits, looks = hub.subscribe("job", previews=False), hub.subscribe("other")
    assert hub.followed() == {"job", "other"} and hub.previewed() == {"other"}
    for job_id in ("job", "other"):
        hub.publish(job_id, Event("preview", 1))
        hub.publish(job_id, Event("done", None))
    assert names(waits) == [("done", None)] and names(looks) == [("preview", 1), ("done", None)]
