package filter

// Verdict is what becomes of a packet: it passes, or why it does not.
type Verdict uint8

// The verdicts. All but Pass are drops, and counted.
const (
	Pass Verdict = iota

	DropNotIP          // neither IPv4 nor IPv6
	DropTruncated      // shorter than its headers say
	DropTrailing       // longer than its headers say
	DropHeader         // an IP header that contradicts itself
	DropOption         // an IPv4 option that is malformed or routes by itself
	DropExtension      // an IPv6 extension header that is unknown, misplaced or one too many
	DropRouting        // an IPv6 routing header
	DropTransportShort // no room for the transport's header
	DropTransportOdd   // a transport header that no stack sends
	DropICMPType       // an ICMP message that is neither echo nor an error
	DropICMPUnmatched  // an ICMP error about no flow of ours
	DropFragmentTiny   // a first fragment without the whole transport header
	DropFragmentOdd    // a fragment of impossible length or place
	DropFragmentOver   // a fragment that overlaps another
	DropFragmentLost   // a later fragment whose first has not passed
	DropSource         // a source no packet may have: loopback, multicast, unspecified
	DropDestination    // a destination no packet may have: loopback, unspecified
	DropMulticast      // to many at once: kernels send these by themselves, and nobody carries them
	DropSpoofed        // from the tunnel, with an address of this side
	DropStranger       // from the tunnel, with an address that is nobody's
	DropNotOwn         // to the tunnel, from an address that may only answer
	DropNowhere        // to the tunnel, and no peer carries its destination
	DropNoFlow         // an answer to nothing
	DropDenied         // no rule allows it
	DropCut            // of a flow that was cut
	DropSourceFull     // its source has as many flows as one may have
	DropTableFull      // there are as many flows as may be

	verdicts // how many there are
)

var verdictNames = [verdicts]string{
	Pass:               "pass",
	DropNotIP:          "drop_not_ip",
	DropTruncated:      "drop_truncated",
	DropTrailing:       "drop_trailing_bytes",
	DropHeader:         "drop_header",
	DropOption:         "drop_ip_option",
	DropExtension:      "drop_extension_header",
	DropRouting:        "drop_routing_header",
	DropTransportShort: "drop_transport_short",
	DropTransportOdd:   "drop_transport_odd",
	DropICMPType:       "drop_icmp_type",
	DropICMPUnmatched:  "drop_icmp_unmatched",
	DropFragmentTiny:   "drop_fragment_tiny",
	DropFragmentOdd:    "drop_fragment_odd",
	DropFragmentOver:   "drop_fragment_overlap",
	DropFragmentLost:   "drop_fragment_without_first",
	DropSource:         "drop_source",
	DropDestination:    "drop_destination",
	DropMulticast:      "drop_multicast",
	DropSpoofed:        "drop_spoofed",
	DropStranger:       "drop_unknown_source",
	DropNotOwn:         "drop_not_own_source",
	DropNowhere:        "drop_nowhere",
	DropNoFlow:         "drop_no_flow",
	DropDenied:         "drop_denied",
	DropCut:            "drop_cut_flow",
	DropSourceFull:     "drop_source_full",
	DropTableFull:      "drop_table_full",
}

// String returns the name under which the verdict is counted.
func (v Verdict) String() string {
	if v >= verdicts {
		return "unknown"
	}
	return verdictNames[v]
}
