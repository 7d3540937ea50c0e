"""Topic filters and who subscribed to them; finds the subscribers of a topic without walking all filters.

It is not an access list (`access.py` is). Filters without a wildcard are a dictionary; the others are a
tree by level, so a publish costs the number of its levels, however many devices have subscribed to
`down/<themselves>/#`.
"""

from typing import Generic, TypeVar

T = TypeVar("T")

LEVELS_MAX = 16
"""Levels of a filter: the protocol's topics have five, and the tree is walked by recursion."""


class FilterTable(Generic[T]):
    """Subscribers by topic filter, each with its granted QoS."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[T, int]] = {}
        self._tree: _Node[T] = _Node()

    def match(self, topic: str) -> dict[T, int]:
        """The subscribers of a topic, each once, with the highest QoS of its filters that match."""
        found = dict(self._exact.get(topic, ()))
        if self._tree.children:
            levels = topic.split("/")
            # [MQTT-4.7.2-1]: a filter that begins with a wildcard does not match `$SYS` and its like
            self._tree.collect(levels, 0, found, wild=not topic.startswith("$"))
        return found

    def add(self, topic_filter: str, subscriber: T, qos: int) -> None:
        """Subscribe, or change the QoS of a subscription."""
        if not has_wildcard(topic_filter):
            self._exact.setdefault(topic_filter, {})[subscriber] = qos
            return
        node = self._tree
        for level in topic_filter.split("/"):
            node = node.children.setdefault(level, _Node())
        node.subscribers[subscriber] = qos

    def remove(self, topic_filter: str, subscriber: T) -> None:
        """Unsubscribe; nothing happens if there is no such subscription."""
        if not has_wildcard(topic_filter):
            subscribers = self._exact.get(topic_filter)
            if subscribers is not None:
                subscribers.pop(subscriber, None)
                if not subscribers:
                    del self._exact[topic_filter]
            return
        self._tree.remove(topic_filter.split("/"), 0, subscriber)

    def __len__(self) -> int:
        """The number of distinct filters held: 0 when everybody has gone, which the tests look at."""
        return len(self._exact) + self._tree.count()


def is_filter(topic_filter: str) -> bool:
    """Whether a string is a well-formed topic filter [MQTT-4.7.1]; shared subscriptions (`$share`) are not
    served."""
    if not topic_filter or "\0" in topic_filter or topic_filter.startswith("$share/"):
        return False
    levels = topic_filter.split("/")
    return len(levels) <= LEVELS_MAX and not any(
        ("#" in level and (level != "#" or index != len(levels) - 1)) or ("+" in level and level != "+")
        for index, level in enumerate(levels)
    )


def is_topic(topic: str) -> bool:
    """Whether a string is a topic one can publish on [MQTT-3.3.2-2, MQTT-4.7.3-1]."""
    return bool(topic) and not has_wildcard(topic) and "\0" not in topic


def has_wildcard(topic_filter: str) -> bool:
    """Whether a filter matches more than the topic it spells."""
    return "#" in topic_filter or "+" in topic_filter


class _Node(Generic[T]):
    __slots__ = ("children", "subscribers")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.subscribers: dict[T, int] = {}

    def collect(self, levels: list[str], index: int, found: dict[T, int], *, wild: bool) -> None:
        if wild and (rest := self.children.get("#")) is not None:
            _merge(found, rest.subscribers)  # `a/#` matches `a` as well
        if index == len(levels):
            _merge(found, self.subscribers)
            return
        if (named := self.children.get(levels[index])) is not None:
            named.collect(levels, index + 1, found, wild=True)
        if wild and (any_one := self.children.get("+")) is not None:
            any_one.collect(levels, index + 1, found, wild=True)

    def remove(self, levels: list[str], index: int, subscriber: T) -> bool:
        """Remove and say whether this node is empty now, so that its parent drops it."""
        if index == len(levels):
            self.subscribers.pop(subscriber, None)
        elif (child := self.children.get(levels[index])) is not None and child.remove(
            levels, index + 1, subscriber
        ):
            del self.children[levels[index]]
        return not self.children and not self.subscribers

    def count(self) -> int:
        return bool(self.subscribers) + sum(child.count() for child in self.children.values())


def _merge(found: dict[T, int], subscribers: dict[T, int]) -> None:
    for subscriber, qos in subscribers.items():
        found[subscriber] = max(qos, found.get(subscriber, 0))
