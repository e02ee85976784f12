package coord

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
)

// A bbolt file begins with two meta pages. Each has a 16-byte page header, then
// in the machine's byte order:
//
//	 0 magic u32     4 version u32    8 page size u32   12 flags u32
//	16 root u64     24 sequence u64  32 freelist u64    40 pages in use u64
//	48 txid u64     56 FNV-1a of the 56 bytes before, u64
//
// The valid one with the higher txid counts. bbolt maps the file and does not
// compare its size with the pages in use, so a cut file would be a memory fault
// much later: it is compared here.
const (
	boltPageHeader = 16
	boltMetaSize   = 64
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
)

type boltMetaPage struct {
	pageSize uint32
	pages    uint64
	txid     uint64
}

func parseBoltMeta(b []byte) (boltMetaPage, bool) {
	order := binary.NativeEndian
	if len(b) < boltMetaSize || order.Uint32(b) != boltMagic || order.Uint32(b[4:]) != boltVersion {
		return boltMetaPage{}, false
	}
	sum := fnv.New64a()
	sum.Write(b[:56])
	m := boltMetaPage{pageSize: order.Uint32(b[8:]), pages: order.Uint64(b[40:]), txid: order.Uint64(b[48:])}
	plausible := m.pageSize >= 512 && m.pageSize <= 1<<20 && m.pageSize&(m.pageSize-1) == 0 && m.pages >= 2 && m.pages < 1<<32
	return m, plausible && order.Uint64(b[56:]) == sum.Sum64()
}

// checkBoltHeader refuses what bbolt would take for a new database, crash on,
// or overwrite.
func checkBoltHeader(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if info.Size() == 0 {
		return damaged(path, "it is empty")
	}
	var best boltMetaPage
	found := false
	consider := func(off int64) {
		b := make([]byte, boltMetaSize)
		if _, err := f.ReadAt(b, off+boltPageHeader); err != nil {
			return
		}
		if m, ok := parseBoltMeta(b); ok && (!found || m.txid > best.txid) {
			best, found = m, true
		}
	}
	consider(0)
	if found {
		consider(int64(best.pageSize))
	} else {
		for size := int64(512); size <= 64<<10; size *= 2 { // the first is broken: its page size is not known
			consider(size)
		}
	}
	if !found {
		return damaged(path, "it has no valid header")
	}
	if need := int64(best.pages) * int64(best.pageSize); info.Size() < need {
		return damaged(path, fmt.Sprintf("it was cut: it has %d bytes and should have at least %d", info.Size(), need))
	}
	return nil
}
