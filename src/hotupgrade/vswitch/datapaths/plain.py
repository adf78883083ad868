"""A private Open vSwitch without DPDK, in a network namespace, with whatever ports its user adds."""

from __future__ import annotations

from collections.abc import Mapping

from hotupgrade.errors import NotNow, Reason
from hotupgrade.vswitch.builds import SwitchBuild
from hotupgrade.vswitch.processes import start_time
from hotupgrade.vswitch.switch import Switch, SwitchOptions

IDLE_MS = 60_000  # for as long a flow without packets stays cached: traffic is halted while it is counted


class PlainSwitch(Switch):
    """As :class:`Switch`, but it has no bridge at first and takes no hugepages.

    Which datapath it has is a matter of its bridges: ``system`` is the kernel's, ``netdev`` the one in user space.
    """

    def __init__(
        self,
        build: SwitchBuild,
        other_config: Mapping[str, str] | None = None,
        *,
        network_of: int | None = None,
        command_timeout: float = 60.0,
    ) -> None:
        """``network_of``: as in :class:`SwitchOptions`."""
        options = SwitchOptions(
            ports=0,
            network_of=network_of,
            other_config=other_config,
            start_timeout=4 * command_timeout,
            command_timeout=command_timeout,
        )
        super().__init__(build, options)

    def _start(self) -> None:
        self._make_directory()
        self._start_database()
        self._start_daemon()

    def _configuration(self) -> dict[str, str]:
        return {"max-idle": str(IDLE_MS), **(self.options.other_config or {})}

    def _is_ready(self) -> bool:
        if start_time(self.pid) is None or not self.alive:
            raise NotNow(Reason("switch", "ovs-vswitchd", f"ovs-vswitchd ended while starting:\n{self.log()[-2000:]}"))
        # Set once it has taken the database's contents for the first time.
        return self._control.exists() and self.vsctl("get", "Open_vSwitch", ".", "cur_cfg").strip() != "[]"
