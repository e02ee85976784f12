package routing

import (
	"os"
	"path/filepath"
	"strings"
)

// procSys is /proc/sys; what lies under net there is of the calling thread's
// network namespace.
type procSys string

// procSysNet is where Linux has it.
const procSysNet procSys = "/proc/sys"

// Read returns the value of a key.
func (p procSys) Read(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(string(p), key))
	return strings.TrimSpace(string(b)), plain(err)
}

// Write gives a key a value.
func (p procSys) Write(key, value string) error {
	f, err := os.OpenFile(filepath.Join(string(p), key), os.O_WRONLY, 0)
	if err != nil {
		return plain(err)
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return plain(err)
}

// Links lists the links that have IPv4 settings.
func (p procSys) Links() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(string(p), "net/ipv4/conf"))
	var links []string
	for _, e := range entries {
		if e.Name() != "all" && e.Name() != "default" {
			links = append(links, e.Name())
		}
	}
	return links, plain(err)
}

// plain strips the act and the path from a file's error: the caller names the
// act in words the operator knows.
func plain(err error) error {
	if e, ok := err.(*os.PathError); ok {
		return e.Err
	}
	return err
}
