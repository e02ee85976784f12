// Package policy says who may reach what: it reads a network's policy, checks it
// against the members there are, and compiles for each node the rules that this
// node enforces. Everything here is a pure function; time is an argument.
//
// A policy only ever allows. What no rule allows is refused, and the order of
// rules changes nothing but the name under which a flow is recorded.
//
// # The file
//
// One YAML document, read strictly: an unknown key, a name that is there twice,
// an alias or a second document is an error with its line and a hint. A value
// that is a list may be written as the one word it would hold.
//
//	groups     NAME: [USER...]                    names for users; joined with the network's groups
//	hosts      NAME: [ADDRESS or PREFIX...]       names for addresses
//	rules      a list of:
//	  name       for the record; else made from the content (rule-1f2e3d4c), so
//	             that it stays when other rules come and go
//	  src        user:NAME or USER, group:NAME (of this file, of the network, or
//	             of both; GROUP if it is of this file), tag:NAME, node:NAME, "*" for
//	             every member
//	  dst        HOST, NODE, host:NAME, node:NAME, tag:NAME, ADDRESS, PREFIX,
//	             routes (all that gateways advertise and may), nodes, gateways,
//	             relays (their overlay addresses), "*" (nodes and routes)
//	  ports      tcp, udp, icmp, any; tcp/22, tcp/8000-8100, "tcp/80,443";
//	             without it: any, which is every protocol, of ICMP the echo
//	  times      days: mon-fri            in the zone; without it every day
//	             hours: "08:00-18:30"     22:00-06:00 belongs to the day it begins on
//	             zone: Europe/Berlin      else UTC
//	             not-before, until        2026-09-01 (until: that day included) or
//	                                      2026-09-01T08:00:00+08:00
//	tests      a list of:
//	  who        USER, user:NAME, node:NAME, tag:NAME
//	  at         a time; without it the times of rules are left out of account
//	  accept     TARGET...  each must be reached, all of it
//	  deny       TARGET...  none may be reached, not even a part
//
// A TARGET, in tests, grants and questions alike, is DST[:PORTS][/PROTO] with a
// dst as above: nas:22 (TCP when it does not say), nas:53/udp, nas/icmp, nas,
// 192.168.1.0/24:80,443, [fd00::1]:22.
//
// Default is the policy of a new network. Its text explains itself.
//
// # From a policy to packets
//
// Parse knows the text only. Check compares its names with a World, and RunTests
// runs its tests; a policy that fails either is not to be accepted. What was
// accepted once may come to name somebody who has left: that stands for nobody.
// An address that nobody has is no error, as a gateway may come later; Warnings
// lists those.
//
// Resolve looks every name up once, for all nodes. From there, For gives what
// one node enforces, Peers whom it may talk to at all, and Reaches and
// WhoReaches answer people, all by the same sets. The node that receives is the
// one that enforces: its Ruleset holds the rules that lead to its own addresses
// and routes, with the sources as sets of overlay addresses, named by the
// policy's own terms. So a member who joins a group changes one set, and Diff of
// two rulesets holds that and nothing more.
//
// A node that another carries is judged by its own address, and the carrier
// enforces for it: its Ruleset has the rules that lead there too. A seat only
// begins: no rule leads to one.
//
// A grant becomes a rule of the same kind after those of the policy, with its
// deadline inside, so that the gateway's own clock ends it.
//
// # Measured
//
// With 1,000 users and 10,000 rules on one core of a busy two-core virtual
// machine: reading the file 450 ms, compiling it for the gateway 0.22 s, for each
// of the 1,001 nodes together 0.39 s (BenchmarkParse, BenchmarkCompile,
// BenchmarkCompileAll). When one user leaves a group, the delta is found in
// 5.5 ms and has 142 bytes as JSON, most of them the two digests that guard it.
package policy
