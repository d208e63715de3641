package server

import (
	"errors"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/userset"
)

// maxUsers is how many users one call may name: twice what an export takes.
// A bitmap of few bytes can name 2^64, which nobody would wait for.
const maxUsers = 20_000_000

// readUsers reads a set of user numbers that a caller sent in a field; anything else is an
// Invalid fault. It allocates in proportion to b, whatever b says of its own size.
func readUsers(field string, b []byte) (*roaring64.Bitmap, error) {
	set, err := userset.Read(b)
	switch {
	case errors.Is(err, userset.ErrRange):
		return nil, fault.Field(field, "user numbers are below 2^63")
	case err != nil:
		return nil, fault.Field(field, "not a portable serialization of a 64-bit roaring bitmap")
	case set.GetCardinality() > maxUsers:
		return nil, fault.Field(field, "more than 20,000,000 users")
	}
	return set, nil
}
