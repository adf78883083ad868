"""Open vSwitch with datapaths other than DPDK's: the kernel's, and the plain ones in user space.

The switch and whatever it forwards for are in network namespaces of their own.  Traffic is counted frame by frame by
programs at its ends; what the switch and the kernel know before and after an upgrade is compared by a program.
"""
