// Package diff computes what has to change at a destination: from the users
// that were sent and those that should be in. It never looks at the
// destination and never at the previous evaluation.
package diff

import "github.com/RoaringBitmap/roaring/v2/roaring64"

// Change is the difference between what is wanted and what was sent.
type Change struct {
	// Add are users wanted and not sent.
	Add *roaring64.Bitmap
	// Remove are users sent and no longer wanted.
	Remove *roaring64.Bitmap
	// Check are users sent and wanted whose identifier or columns may have
	// changed since; their stored hash decides.
	Check *roaring64.Bitmap
	// Keep is how many users are sent, wanted and not in Check.
	Keep uint64
}

// Of diffs wanted against sent. touched are the users whose profile or
// identity changed since what was sent; nil means all of them may have.
func Of(wanted, sent, touched *roaring64.Bitmap) Change {
	c := Change{Add: roaring64.AndNot(wanted, sent), Remove: roaring64.AndNot(sent, wanted)}
	both := roaring64.And(wanted, sent)
	if touched == nil {
		c.Check = both
		return c
	}
	c.Check = roaring64.And(both, touched)
	c.Keep = both.GetCardinality() - c.Check.GetCardinality()
	return c
}

// Guard says when removals are too many to be believed.
type Guard struct {
	// MinMembers is the size of a segment from which the guard applies.
	MinMembers uint64
	// MaxRemovedShare is the share of the segment, 0 to 1, above which removals are held back.
	MaxRemovedShare float64
}

// Trips reports whether removing this many of so many members needs someone's approval.
func (g Guard) Trips(removed, members uint64) bool {
	return members > g.MinMembers && float64(removed) > g.MaxRemovedShare*float64(members)
}
