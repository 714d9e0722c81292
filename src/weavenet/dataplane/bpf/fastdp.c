/*
 * The fast data path: one VXLAN device as a port of the bridge, and these two programs on it.
 *
 * Weave Net put a learning switch into Open vSwitch: user space decided on the first packet of each flow and installed
 * flows, which had to be flushed whenever a route, a short ID or a port changed. Here the switch itself runs in the
 * kernel. User space writes only what the mesh knows (who is reached by way of whom); what the traffic teaches (which
 * MAC lives where) the programs learn by themselves. So there are no flows to flush, no packet ever waits for user
 * space, and the maps, which the programs hold, keep everything working while the agent is away.
 *
 *     pods - bridge - egress: which peer has this MAC? set the tunnel key -> vxlan -> UDP 6784 -> peer
 *                     ingress: for us? learn, to the bridge, flood on. For another peer? relay.  <-  vxlan  <-  UDP
 *
 * Peers that fastdp does not reach are reached by sleeve, through a process that has a socket behind a device, the
 * sleeve port. Where they are next, the remote address is SLEEVE, and the frame goes to the port, with the two short IDs of
 * its VNI in two VLAN tags. What that process receives comes in by the port in the same form and is treated as if it had come by VXLAN. It enters the
 * bridge by the VXLAN device, too: one port for the whole overlay, so that nothing changes in the bridge when traffic
 * moves from one way to the other.
 *
 *     egress, relay, flood -> port: two tags -> process -> UDP 6783 -> peer
 *     ingress of the VXLAN device <- port: tags off; for us? learn, flood on. For another peer? relay. <- process <- UDP
 *
 * The device is in collect-metadata mode (`external`): it takes VNI and remote address of each packet from a tunnel key
 * and hands over what it received in one. The VNI holds two peers, origin | destination << 12 (docs/protocol.md, "Fast
 * datapath"). The origin stays for the whole way; every hop of a broadcast is a unicast with that hop as destination.
 *
 * A frame may pass the egress program twice, first as it comes from the bridge and then, with a tunnel key, as a clone
 * (bpf_clone_redirect) or as a frame on relay (bpf_redirect). The tunnel key is what tells the two apart: a frame from
 * the bridge has none, since a veth that leads out of a namespace, and routing on the host, both drop it. A mark would
 * do as well, but marks belong to the host's firewall.
 *
 * Loops: the mesh's routes are consistent only most of the time, and Ethernet has no TTL. A relayed frame therefore
 * goes on with the outer TTL it came with less one (Open vSwitch started again at 64), and never back to the address
 * it came from (Weave: "Vetoed installation of hairpin flow").
 *
 * Nothing here needs more than Linux 5.8 (ring buffer); loops are bounded without bpf_loop, and there is no CO-RE.
 * linux/fastdp.py mirrors the structs and the counters; tests/linux/test_fastdp.py compares the two.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PEERS_MAX 4096 /* short IDs have 12 bits */
#define PEER_BITS 12
#define PEER_MASK (PEERS_MAX - 1)
#define HOPS_MAX 512	  /* next hops of one origin: the connections of this host, 200 by default; a power of two */
#define MACS_MAX 65536	  /* 5 MB; the least recently used are forgotten first */
#define SLOTS_MAX 16	  /* special frames in flight; one would do */
#define LOCAL PEERS_MAX	  /* the place of a MAC behind our own bridge: stays right when our short ID changes */
#define OUTER_TTL 64
#define SECOND_NS 1000000000ULL
#define MAC_AGE_NS (600 * SECOND_NS)	/* Weave: macMaxAge */
#define MAC_REFRESH_NS (60 * SECOND_NS) /* Weave: a tenth of it, which also keeps the cache line clean */
#define MISS_INTERVAL_NS SECOND_NS
#define SLEEVE 0xffffffffU   /* in place of an outer address, which this can never be: reached by sleeve */
#define FAST_SLEEVE 0xfffffffeU /* the same, in the fast format: by a device that hands over large packets whole */
#define FLOODED_TOS 1	     /* in a tunnel key on its way to the sleeve port: one copy of many */
#define FLOODED_TCI 0x2000   /* the same in a VLAN tag: priority 1 */
#define INJECTED 0x574e01  /* mark between the sleeve port and the VXLAN device */

/* What happened, per CPU. Names of drops start with DROP. Mirrored by Counter in linux/fastdp.py, in this order. */
enum counter {
	LEARNT,		     /* a MAC is new, or moved */
	UNICAST,	     /* frames of ours to the peer that has the MAC */
	FLOODED,	     /* frames of ours to everyone */
	FLOODED_ON,	     /* frames of others that we flood on */
	FLOOD_COPIES,	     /* what both made on the wire */
	RELAYED,	     /* frames from one peer to another */
	RECEIVED,	     /* frames for us */
	DROP_SHORT,	     /* no Ethernet header */
	DROP_LINK_LOCAL,     /* spanning tree, which ends at the bridge */
	DROP_SPECIAL,	     /* both MACs zero, but not ours to send; or received, and read elsewhere */
	DROP_NO_HOPS,	     /* nobody to flood to */
	DROP_NO_TUNNEL_KEY,  /* received without one, or the kernel refused ours */
	DROP_UNKNOWN_SOURCE, /* the VNI names an origin we do not know */
	DROP_UNKNOWN_PEER,   /* to be relayed to a peer we do not know */
	DROP_HAIRPIN,	     /* the relay would send it back to where it came from */
	DROP_TTL,	     /* relayed too often */
	DROP_COPY,	     /* the kernel refused a copy of a flooded frame */
	DROP_NO_SLEEVE,	     /* to go by sleeve, which is not running; or from there, without its tags */
	COUNTERS
};

enum event_kind { FLOOD_MISS = 1 };

/* Addresses are in host byte order throughout, as bpf_tunnel_key has them. */
struct config {
	__u32 ours;  /* our short ID */
	__u32 port;   /* interface index of the sleeve port; 0: there is none, and so no sleeve */
	__u32 vxlan; /* interface index of the VXLAN device */
	__u32 fast_port; /* as port, for peers that understand sleeve's fast format */
};

struct hop {
	__u32 short_id;
	__u32 remote;
};

struct flood {
	__u32 count;
	struct hop hops[HOPS_MAX];
};

struct place {
	__u64 seen_ns; /* CLOCK_MONOTONIC */
	__u32 where;   /* short ID, or LOCAL */
	__u32 reserved;
};

struct special {
	__u32 remote;
	__u32 vni;
};

struct traffic {
	__u64 sent_packets; /* a large packet of many segments is one */
	__u64 sent_bytes;
	__u64 received_packets;
	__u64 received_bytes;
};

struct event {
	__u32 kind;
	__u32 origin;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

/* Short ID -> outer address of the next hop towards it; 0: no such peer. An array, as 32 KB save a lookup. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PEERS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} peers SEC(".maps");

/* Origin -> its next hops here. In a full mesh all rows but ours are empty; one that is missing is asked for. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PEERS_MAX);
	__type(key, __u32);
	__type(value, struct flood);
} floods SEC(".maps");

/* Six octets of MAC and two zeros -> where it was last seen. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MACS_MAX);
	__type(key, __u64);
	__type(value, struct place);
} macs SEC(".maps");

/* Mark of the sending socket -> where its frame is to go. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS_MAX);
	__type(key, __u32);
	__type(value, struct special);
} special SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} stats SEC(".maps");

/* Short ID -> what was sent to that peer and received from it, by whichever way. An array for the same reason as above. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PEERS_MAX);
	__type(key, __u32);
	__type(value, struct traffic);
} traffic SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536); /* a power of two and whole pages, of whatever size */
} events SEC(".maps");

/* Origin -> when the agent was last told that its row is missing. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PEERS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} misses SEC(".maps");

struct frame {
	__u64 destination;
	__u64 source;
};

static __always_inline void count(enum counter which)
{
	__u32 index = which;
	__u64 *counter = bpf_map_lookup_elem(&stats, &index);

	if (counter)
		++*counter; /* per CPU, and softirqs do not interrupt each other */
}

static __always_inline void count_sent(struct __sk_buff *skb, __u32 peer)
{
	struct traffic *with = bpf_map_lookup_elem(&traffic, &peer);

	if (with) {
		with->sent_packets++;
		with->sent_bytes += skb->len;
	}
}

static __always_inline void count_received(struct __sk_buff *skb, __u32 peer)
{
	struct traffic *with = bpf_map_lookup_elem(&traffic, &peer);

	if (with) {
		with->received_packets++;
		with->received_bytes += skb->len;
	}
}

static __always_inline int drop(enum counter why)
{
	count(why);
	return TC_ACT_SHOT;
}

static __always_inline int is_group(__u64 mac)
{
	return *(__u8 *)&mac & 1; /* the first octet on the wire is the first in memory */
}

static __always_inline int read_frame(struct __sk_buff *skb, struct frame *frame)
{
	void *data = (void *)(long)skb->data;

	if (data + 14 > (void *)(long)skb->data_end)
		return -1;
	frame->destination = 0;
	frame->source = 0;
	__builtin_memcpy(&frame->destination, data, 6);
	__builtin_memcpy(&frame->source, data + 6, 6);
	return 0;
}

/*
 * Remember where a MAC is. The last word wins, also against an entry of our own: a pod that moved here or away is
 * found again with its first frame. Weave kept the old place when a remote MAC showed up locally, for fear of its own
 * injected frames coming back by the bridge; the kernel's bridge never sends a frame back to the port it came from.
 */
static __always_inline void learn(__u64 mac, __u32 where, __u64 now_ns)
{
	struct place *known, place = {};

	if (is_group(mac) || !mac)
		return;
	known = bpf_map_lookup_elem(&macs, &mac);
	if (known && known->where == where) {
		if (now_ns - known->seen_ns > MAC_REFRESH_NS)
			known->seen_ns = now_ns;
		return;
	}
	place.seen_ns = now_ns;
	place.where = where;
	bpf_map_update_elem(&macs, &mac, &place, BPF_ANY);
	count(LEARNT);
}

/* Where a MAC is, or -1. The age is signed: clocks of two CPUs may differ by a little. */
static __always_inline __s32 find(__u64 mac, __u64 now_ns)
{
	struct place *known;

	if (is_group(mac))
		return -1;
	known = bpf_map_lookup_elem(&macs, &mac);
	if (!known || (__s64)(now_ns - known->seen_ns) > (__s64)MAC_AGE_NS)
		return -1;
	return known->where & (LOCAL | PEER_MASK);
}

/* The sizes of a tunnel key that kernels accept are older than its last fields; these are all we need. */
#define KEY_SIZE offsetof(struct bpf_tunnel_key, tunnel_label)

static __always_inline long tunnel_with_tos(struct __sk_buff *skb, __u32 vni, __u32 remote, __u8 ttl, __u8 tos)
{
	struct bpf_tunnel_key key = {};

	key.tunnel_id = vni;
	key.remote_ipv4 = remote;
	key.tunnel_ttl = ttl;
	key.tunnel_tos = tos;
	/* No UDP checksum, as Weave; do not fragment, so that a heartbeat proves that full-size frames pass. */
	return bpf_skb_set_tunnel_key(skb, &key, KEY_SIZE, BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT);
}

static __always_inline long tunnel(struct __sk_buff *skb, __u32 vni, __u32 remote, __u8 ttl)
{
	return tunnel_with_tos(skb, vni, remote, ttl, 0);
}

static __always_inline int is_by_sleeve(__u32 remote)
{
	return remote == SLEEVE || remote == FAST_SLEEVE;
}

static __always_inline __u32 port_index(__u32 remote)
{
	__u32 zero = 0;
	struct config *config_value = bpf_map_lookup_elem(&config, &zero);

	if (!config_value)
		return 0;
	return remote == FAST_SLEEVE ? config_value->fast_port : config_value->port;
}

/* Send a frame, which has its tunnel key, by sleeve. */
static __always_inline int to_sleeve(__u32 remote)
{
	__u32 port = port_index(remote);

	return port ? bpf_redirect(port, 0) : drop(DROP_NO_SLEEVE);
}

/*
 * Send a copy to one hop, except back to where the frame came from. Global, so that the verifier walks it once and not
 * once for each turn of the loop below, where its branches would multiply to more than the million steps allowed.
 */
__noinline int send_copy(struct __sk_buff *skb, __u32 vni, __u32 remote, __u32 from, __u32 ttl)
{
	__u32 out = skb->ifindex;
	__u8 tos = 0;

	if (remote == from)
		return 0;
	if (is_by_sleeve(remote)) {
		out = port_index(remote);
		tos = FLOODED_TOS;
	} else {
		__u32 zero = 0;
		struct config *config_value = bpf_map_lookup_elem(&config, &zero);

		if (config_value && config_value->vxlan)
			out = config_value->vxlan; /* the frame may have come by the sleeve port */
	}
	if (!out || tunnel_with_tos(skb, vni, remote, ttl, tos) || bpf_clone_redirect(skb, out, 0))
		count(DROP_COPY);
	else {
		count(FLOOD_COPIES);
		count_sent(skb, vni >> PEER_BITS & PEER_MASK);
	}
	return 0;
}

/* Send copies to the first `end` hops of a row. */
static __always_inline void flood_copies(struct __sk_buff *skb, struct flood *row, __u32 end, __u32 origin, __u32 from,
					 __u32 ttl)
{
	for (__u32 i = 0; i < HOPS_MAX; i++) {
		if (i >= end)
			break;
		send_copy(skb, origin | row->hops[i].short_id << PEER_BITS, row->hops[i].remote, from, ttl);
	}
}

/* Tell the agent, at most once a second and origin, that it should write this origin's row. */
static __always_inline void report_miss(__u32 origin, __u64 now_ns)
{
	__u64 *told_ns = bpf_map_lookup_elem(&misses, &origin);
	struct event *event;

	if (!told_ns || (*told_ns && now_ns - *told_ns < MISS_INTERVAL_NS))
		return;
	*told_ns = now_ns;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return; /* nobody reads; the next second is another chance */
	event->kind = FLOOD_MISS;
	event->origin = origin;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline int send_special(struct __sk_buff *skb)
{
	__u32 slot = skb->mark;
	/* Slot 0 is never used: it is the mark of everyone who set none. A pod cannot forge one either, since its mark
	 * ends at its veth, and the bridge takes no frame with a zero source. */
	struct special *special_frame = slot ? bpf_map_lookup_elem(&special, &slot) : NULL;

	if (!special_frame || !special_frame->remote)
		return drop(DROP_SPECIAL);
	if (tunnel(skb, special_frame->vni, special_frame->remote, OUTER_TTL))
		return drop(DROP_NO_TUNNEL_KEY);
	skb->mark = 0; /* it would stay on the outer packet, where it is the host's */
	return TC_ACT_OK;
}

/* Flood a frame from our own bridge; the last hop gets the original. */
static __always_inline int flood_ours(struct __sk_buff *skb, __u32 ours, __u64 now_ns)
{
	struct flood *row = bpf_map_lookup_elem(&floods, &ours);
	__u32 last;

	if (!row)
		report_miss(ours, now_ns);
	if (!row || !row->count)
		return drop(DROP_NO_HOPS);
	count(FLOODED);
	last = (row->count - 1) & (HOPS_MAX - 1); /* the agent writes no larger count; this is for the verifier */
	asm volatile("" : "+r"(last));		  /* or clang derives the last hop from the loop, and proves nothing */
	flood_copies(skb, row, last, ours, 0, OUTER_TTL);
	if (tunnel_with_tos(skb, ours | row->hops[last].short_id << PEER_BITS, row->hops[last].remote, OUTER_TTL,
			    is_by_sleeve(row->hops[last].remote) ? FLOODED_TOS : 0))
		return drop(DROP_NO_TUNNEL_KEY);
	count(FLOOD_COPIES);
	count_sent(skb, row->hops[last].short_id);
	return is_by_sleeve(row->hops[last].remote) ? to_sleeve(row->hops[last].remote) : TC_ACT_OK;
}

/* A frame leaves our bridge by the VXLAN port. Source of the rules: docs/protocol.md, "Captured frame". */
SEC("tc")
int weave_egress(struct __sk_buff *skb)
{
	__u64 link_local = 0;
	struct bpf_tunnel_key key;
	struct config *config_value;
	struct frame frame;
	__u32 zero = 0, ours, *remote;
	__u64 now_ns;
	__s32 where;

	if (!bpf_skb_get_tunnel_key(skb, &key, KEY_SIZE, 0))
		return TC_ACT_OK; /* decided already: a copy, or on relay */
	if (read_frame(skb, &frame))
		return drop(DROP_SHORT);
	if (!frame.destination && !frame.source)
		return send_special(skb);
	__builtin_memcpy(&link_local, "\x01\x80\xc2\x00\x00\x00", 6);
	if (frame.destination == link_local)
		return drop(DROP_LINK_LOCAL);
	config_value = bpf_map_lookup_elem(&config, &zero);
	if (!config_value)
		return TC_ACT_SHOT; /* an array has all its elements; the verifier does not know */
	ours = config_value->ours & PEER_MASK;
	now_ns = bpf_ktime_get_ns();
	learn(frame.source, LOCAL, now_ns);
	/* A MAC that is LOCAL but comes here nevertheless is one the bridge does not know any more. Weave drops these;
	 * flooding them costs nothing in practice and finds a pod that left without a word. */
	where = find(frame.destination, now_ns);
	if (where >= 0 && where < PEERS_MAX) {
		__u32 peer = where;

		remote = bpf_map_lookup_elem(&peers, &peer);
		if (remote && *remote) {
			if (tunnel(skb, ours | peer << PEER_BITS, *remote, OUTER_TTL))
				return drop(DROP_NO_TUNNEL_KEY);
			count(UNICAST);
			count_sent(skb, peer);
			return is_by_sleeve(*remote) ? to_sleeve(*remote) : TC_ACT_OK;
		}
	}
	return flood_ours(skb, ours, now_ns);
}

/* A frame from one peer to another, of which we are the best way. Nothing is learnt, and the VNI stays. */
static __always_inline int relay(struct __sk_buff *skb, const struct bpf_tunnel_key *key, __u32 destination,
				 __u32 vxlan)
{
	__u32 *remote = bpf_map_lookup_elem(&peers, &destination);

	if (!remote || !*remote)
		return drop(DROP_UNKNOWN_PEER);
	if (*remote == key->remote_ipv4)
		return drop(DROP_HAIRPIN); /* not by sleeve, where key->remote_ipv4 is 0: there it is one address for all */
	if (key->tunnel_ttl <= 1)
		return drop(DROP_TTL);
	if (tunnel(skb, key->tunnel_id, *remote, key->tunnel_ttl - 1))
		return drop(DROP_NO_TUNNEL_KEY);
	count(RELAYED);
	return is_by_sleeve(*remote) ? to_sleeve(*remote) : bpf_redirect(vxlan, 0);
}

static __always_inline void flood_on(struct __sk_buff *skb, const struct bpf_tunnel_key *key, __u32 origin,
				     __u64 now_ns)
{
	struct flood *row = bpf_map_lookup_elem(&floods, &origin);

	if (!row) {
		report_miss(origin, now_ns);
		return;
	}
	if (!row->count)
		return; /* a full mesh */
	if (key->tunnel_ttl <= 1) {
		count(DROP_TTL);
		return;
	}
	count(FLOODED_ON);
	/* The original goes up to the bridge with the key of the last copy on it: harmless, see the top. */
	flood_copies(skb, row, row->count, origin, key->remote_ipv4, key->tunnel_ttl - 1);
}

/* A frame came from a peer, by either way; TC_ACT_OK if it is to go to the bridge. `vxlan` is the VXLAN device. */
static __always_inline int receive(struct __sk_buff *skb, const struct bpf_tunnel_key *key, __u32 vxlan)
{
	struct config *config_value;
	struct frame frame;
	__u32 zero = 0, origin, destination, *known;
	__u64 now_ns;

	if (read_frame(skb, &frame))
		return drop(DROP_SHORT);
	if (!frame.destination && !frame.source)
		return drop(DROP_SPECIAL); /* linux/special.py saw it before; newer kernels do not even bring it here */
	origin = key->tunnel_id & PEER_MASK;
	destination = key->tunnel_id >> PEER_BITS & PEER_MASK;
	known = bpf_map_lookup_elem(&peers, &origin);
	if (!known || !*known)
		return drop(DROP_UNKNOWN_SOURCE);
	config_value = bpf_map_lookup_elem(&config, &zero);
	if (!config_value)
		return TC_ACT_SHOT; /* never: see above */
	if (destination != (config_value->ours & PEER_MASK))
		return relay(skb, key, destination, vxlan);
	count(RECEIVED);
	count_received(skb, origin);
	now_ns = bpf_ktime_get_ns();
	learn(frame.source, origin, now_ns);
	if (find(frame.destination, now_ns) != LOCAL)
		flood_on(skb, key, origin, now_ns);
	return TC_ACT_OK;
}

/* A frame came by VXLAN. Source of the rules: docs/protocol.md, "Frame received over an overlay". */
SEC("tc")
int weave_ingress(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, KEY_SIZE, 0))
		return receive(skb, &key, skb->ifindex);
	/* What came by the wire has a key, so this can only be a redirected frame, of ours or of somebody else on this host. */
	if (skb->mark != INJECTED)
		return drop(DROP_NO_TUNNEL_KEY);
	skb->mark = 0;
	return TC_ACT_OK;
}

/* A frame leaves for the process that speaks sleeve: its VNI becomes two VLAN tags, the destination's outside. */
SEC("tc")
int weave_sleeve_egress(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	__u32 origin, destination;

	if (bpf_skb_get_tunnel_key(skb, &key, KEY_SIZE, 0))
		return drop(DROP_NO_TUNNEL_KEY); /* the host's own chatter on an interface that is not meant for it */
	origin = key.tunnel_id & PEER_MASK;
	destination = key.tunnel_id >> PEER_BITS & PEER_MASK;
	if (key.tunnel_tos & FLOODED_TOS)
		destination |= FLOODED_TCI;
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), origin) ||
	    bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), destination))
		return drop(DROP_NO_SLEEVE);
	return TC_ACT_OK;
}

/* A frame comes from that process. */
SEC("tc")
int weave_sleeve_ingress(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	struct config *config_value;
	__u32 zero = 0, destination;
	int verdict;

	config_value = bpf_map_lookup_elem(&config, &zero);
	if (!config_value || !config_value->vxlan || !skb->vlan_present)
		return drop(DROP_NO_SLEEVE);
	destination = skb->vlan_tci & PEER_MASK;
	if (bpf_skb_vlan_pop(skb) || !skb->vlan_present)
		return drop(DROP_NO_SLEEVE);
	key.tunnel_id = (skb->vlan_tci & PEER_MASK) | destination << PEER_BITS;
	key.tunnel_ttl = OUTER_TTL; /* sleeve has none: Weave counts on its routes there */
	if (bpf_skb_vlan_pop(skb))
		return drop(DROP_NO_SLEEVE);
	verdict = receive(skb, &key, config_value->vxlan);
	if (verdict != TC_ACT_OK)
		return verdict;
	skb->mark = INJECTED;
	return bpf_redirect(config_value->vxlan, BPF_F_INGRESS);
}

/* The programs call no helper that is reserved to the GPL. */
char LICENSE[] SEC("license") = "Apache-2.0";
