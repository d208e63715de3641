// Package ledger holds what a sync has sent: which users are in at the
// destination, under which identifier, and a hash of the columns that went
// with them. It is kept in blocks of 2^16 user numbers so that a run reads and
// writes only the blocks it changes, while the membership of all blocks is
// small enough to be loaded whole for the diff.
package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/klauspost/compress/zstd"

	"github.com/cohortbridge/cohortbridge/platform/userset"
)

// blockBits is how many low bits of a user number address within a block.
const blockBits = 16

// Unconfirmed is the hash of a user whose delivery got no final answer: the
// user may be in at the destination, so a leaver must be removed, and the
// columns are to be sent again.
const Unconfirmed uint64 = 0

// Entry is what was sent for one user.
type Entry struct {
	// User is the user's number.
	User uint64
	// Identifier is the identity the destination knows the user by.
	Identifier string
	// Hash is of the exported columns as they were sent, or Unconfirmed.
	Hash uint64
}

// BlockOf is the number of the block that holds a user.
func BlockOf(user uint64) uint64 { return user >> blockBits }

// FirstUser is the lowest user number of a block.
func FirstUser(block uint64) uint64 { return block << blockBits }

// Block is one stored block. The zero Block is empty.
type Block struct {
	// No is the block's number.
	No uint64
	// Members is the block's membership, serialized (roaring64, portable form).
	Members []byte
	// Base is the details of the members at the last rewrite; Delta those set
	// since. An entry of either whose user is not a member is dead.
	Base, Delta []byte
}

var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
		if err != nil {
			panic(err) // only bad options fail, and these are constant
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		// The cap bounds what a damaged block can make us allocate.
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			panic(err) // as above
		}
		return d
	})
)

// Compress is the compression of everything the engine stores about users.
func Compress(b []byte) []byte { return encoder().EncodeAll(b, make([]byte, 0, len(b)/3+64)) }

// Decompress undoes Compress. It fails on damaged data.
func Decompress(b []byte) ([]byte, error) { return decoder().DecodeAll(b, nil) }

// MarshalSet serializes a set of user numbers, run-compressed.
func MarshalSet(s *roaring64.Bitmap) ([]byte, error) {
	s.RunOptimize()
	return s.MarshalBinary()
}

// UnmarshalSet undoes MarshalSet; nil and empty mean the empty set. What is
// damaged or hostile is an error, and takes no more memory than its bytes do.
func UnmarshalSet(b []byte) (*roaring64.Bitmap, error) {
	s, err := userset.Read(b)
	if err != nil {
		return nil, fmt.Errorf("user set: %w", err)
	}
	return s, nil
}

// MarshalEntries writes entries, in ascending order of user, compressed.
func MarshalEntries(entries []Entry) []byte { return encodeDetails(entries) }

// UnmarshalEntries undoes MarshalEntries.
func UnmarshalEntries(b []byte) ([]Entry, error) { return decodeDetails(b) }

// encodeDetails writes entries, which are in ascending order of user, column
// by column: that compresses better than entry by entry.
func encodeDetails(entries []Entry) []byte {
	if len(entries) == 0 {
		return nil
	}
	n := 0
	for _, e := range entries {
		n += len(e.Identifier)
	}
	b := make([]byte, 0, n+len(entries)*14+8)
	b = binary.AppendUvarint(b, uint64(len(entries)))
	var last uint64
	for i, e := range entries {
		if i == 0 {
			b = binary.AppendUvarint(b, e.User)
		} else {
			b = binary.AppendUvarint(b, e.User-last)
		}
		last = e.User
	}
	for _, e := range entries {
		b = binary.AppendUvarint(b, uint64(len(e.Identifier)))
	}
	for _, e := range entries {
		b = append(b, e.Identifier...)
	}
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint64(b, e.Hash)
	}
	return Compress(b)
}

// smallestEntry is the bytes that an entry takes at least: a difference of user
// numbers, a length and a hash. More entries than fit are not made room for.
const smallestEntry = 1 + 1 + 8

var errDamaged = errors.New("ledger block is damaged")

func decodeDetails(z []byte) ([]Entry, error) {
	if len(z) == 0 {
		return nil, nil
	}
	b, err := Decompress(z)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	next := func() (uint64, bool) {
		v, k := binary.Uvarint(b)
		if k <= 0 {
			return 0, false
		}
		b = b[k:]
		return v, true
	}
	n, ok := next()
	if !ok || n > uint64(len(b))/smallestEntry {
		return nil, errDamaged
	}
	out := make([]Entry, n)
	var last uint64
	for i := range out {
		d, ok := next()
		if !ok {
			return nil, errDamaged
		}
		last += d
		out[i].User = last
	}
	lens := make([]int, n)
	total := 0
	for i := range lens {
		l, ok := next()
		if !ok || l > uint64(len(b)) {
			return nil, errDamaged
		}
		lens[i] = int(l)
		total += int(l)
	}
	if total+8*int(n) != len(b) {
		return nil, errDamaged
	}
	// One string for all identifiers: one allocation a block, not one a user.
	idents := string(b[:total])
	hashes := b[total:]
	at := 0
	for i := range out {
		out[i].Identifier = idents[at : at+lens[i]]
		at += lens[i]
		out[i].Hash = binary.LittleEndian.Uint64(hashes[8*i:])
	}
	return out, nil
}

// Entries returns the block's living entries in ascending order of user.
func (b Block) Entries() ([]Entry, error) {
	v, err := b.View()
	if err != nil {
		return nil, err
	}
	return v.entries(), nil
}

// View is a block opened for lookups.
type View struct {
	members     *roaring64.Bitmap
	base, delta []Entry
}

// View opens the block.
func (b Block) View() (*View, error) {
	members, err := UnmarshalSet(b.Members)
	if err != nil {
		return nil, err
	}
	base, err := decodeDetails(b.Base)
	if err != nil {
		return nil, err
	}
	delta, err := decodeDetails(b.Delta)
	if err != nil {
		return nil, err
	}
	return &View{members: members, base: base, delta: delta}, nil
}

// Lookup returns the user's entry, and whether the user is in.
func (v *View) Lookup(user uint64) (Entry, bool) {
	if !v.members.Contains(user) {
		return Entry{}, false
	}
	for _, list := range [][]Entry{v.delta, v.base} {
		if i, ok := slices.BinarySearchFunc(list, user, byUser); ok {
			return list[i], true
		}
	}
	return Entry{}, false
}

func byUser(e Entry, user uint64) int {
	switch {
	case e.User < user:
		return -1
	case e.User > user:
		return 1
	}
	return 0
}

func (v *View) entries() []Entry {
	out := make([]Entry, 0, v.members.GetCardinality())
	i, j := 0, 0
	for i < len(v.base) || j < len(v.delta) {
		var e Entry
		switch {
		case j == len(v.delta) || i < len(v.base) && v.base[i].User < v.delta[j].User:
			e = v.base[i]
			i++
		default:
			if i < len(v.base) && v.base[i].User == v.delta[j].User {
				i++
			}
			e = v.delta[j]
			j++
		}
		if v.members.Contains(e.User) {
			out = append(out, e)
		}
	}
	return out
}

// rewriteShare is how large a delta may grow, as a share of the base, before
// the base is rewritten: it bounds both the bytes written for a small change
// and the bytes read for a lookup.
const rewriteShare = 8

// Apply returns the block with entries set and users dropped, and whether its
// Base was rewritten (if not, it need not be stored again). set is in any
// order, one entry a user; a user both set and dropped stays set.
func (b Block) Apply(set []Entry, drop []uint64) (Block, bool, error) {
	members, err := UnmarshalSet(b.Members)
	if err != nil {
		return Block{}, false, err
	}
	delta, err := decodeDetails(b.Delta)
	if err != nil {
		return Block{}, false, err
	}
	baseSize := int(members.GetCardinality())
	for _, u := range drop {
		members.Remove(u)
	}
	set = slices.Clone(set)
	slices.SortFunc(set, func(a, c Entry) int { return byUser(a, c.User) })
	for _, e := range set {
		members.Add(e.User)
	}
	merged := &View{members: members, base: delta, delta: set}
	out := Block{No: b.No, Base: b.Base}
	newDelta := merged.entries()
	rewritten := false
	if len(newDelta)*rewriteShare > baseSize {
		base, err := decodeDetails(b.Base)
		if err != nil {
			return Block{}, false, err
		}
		all := (&View{members: members, base: base, delta: newDelta}).entries()
		out.Base, newDelta, rewritten = encodeDetails(all), nil, true
	}
	out.Delta = encodeDetails(newDelta)
	if out.Members, err = MarshalSet(members); err != nil {
		return Block{}, false, err
	}
	return out, rewritten, nil
}
