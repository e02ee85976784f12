package journal

import (
	"os"
	"strings"
)

// dirSyncOptional: Linux file systems sync directories.
const dirSyncOptional = false

// scope names what the values of the calling thread belong to: the boot of the
// machine and its network namespace. Unknown parts are empty.
func scope() (boot, netns string) {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	netns, _ = os.Readlink("/proc/thread-self/ns/net")
	return strings.TrimSpace(string(b)), netns
}
