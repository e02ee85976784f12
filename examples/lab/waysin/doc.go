// Package waysin tries, in the lab, the ways into the network that are not an
// interface with routes: each the way a user would, and each held to the same
// policy, record and revocation. The tests are all there is here.
package waysin
