package server

import (
	"encoding/binary"
	"math"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// maxUsers is how many users one call may name: twice what an export takes.
// A bitmap of few bytes can name 2^64, which nobody would wait for.
const maxUsers = 20_000_000

// readUsers reads a set of user numbers that a caller sent in a field; anything else is an
// Invalid fault. It allocates in proportion to b, whatever b says of its own size.
func readUsers(field string, b []byte) (*roaring64.Bitmap, error) {
	bm := roaring64.New()
	if len(b) == 0 {
		return bm, nil
	}
	wrong := fault.Field(field, "not a portable serialization of a 64-bit roaring bitmap")
	// The library makes room for as many parts as the head says, before it reads
	// them. Each takes at least a key of 4 bytes and a head of 8.
	if len(b) < 8 || binary.LittleEndian.Uint64(b) > uint64(len(b)-8)/12 {
		return nil, wrong
	}
	if bm.UnmarshalBinary(b) != nil || bm.Validate() != nil {
		return nil, wrong
	}
	switch {
	case bm.IsEmpty():
	case bm.GetCardinality() > maxUsers:
		return nil, fault.Field(field, "more than 20,000,000 users")
	case bm.Maximum() > math.MaxInt64:
		return nil, fault.Field(field, "user numbers are below 2^63")
	}
	return bm, nil
}
