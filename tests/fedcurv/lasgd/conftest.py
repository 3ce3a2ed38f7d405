import os

# torch asks for the name of each connection's peer; where no name server answers, that would take
# the resolver's usual 5 seconds
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

# on loopback only
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
