package ingestion_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"math"
	"runtime"
	"testing"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/ingestion/benchkit"
)

// membersStream collects members.
type membersStream struct {
	grpc.ServerStream
	ctx context.Context
	got []*ingestionv1.Member
}

func (s *membersStream) Context() context.Context { return s.ctx }
func (s *membersStream) Send(m *ingestionv1.ResolveMembersResponse) error {
	s.got = append(s.got, m.GetMembers()...)
	return nil
}

func serialized(f func(*roaring64.Bitmap)) []byte {
	bm := roaring64.New()
	f(bm)
	bm.RunOptimize()
	b, err := bm.ToBytes()
	if err != nil {
		panic(err)
	}
	return b
}

// hostile are sets that cost more than their bytes, or nothing at all.
func hostile() map[string][]byte {
	head := func(n uint64, rest ...byte) []byte { return append(binary.LittleEndian.AppendUint64(nil, n), rest...) }
	return map[string][]byte{
		"more parts than memory has":  head(math.MaxUint64),
		"more parts than bytes":       head(1<<40, 0, 0, 0, 0, 0x3a, 0x30, 0, 0),
		"a negative number of parts":  head(1<<63, 1, 2, 3),
		"cut off in the head":         {1, 2, 3},
		"cut off in a part":           serialized(func(b *roaring64.Bitmap) { b.AddMany([]uint64{1, 7, 1 << 40}) })[:20],
		"unordered numbers":           append(head(1, 0, 0, 0, 0), mustHex("3a300000010000000000010010000000090003000")...),
		"2^32 users in a few bytes":   serialized(func(b *roaring64.Bitmap) { b.AddRange(0, 1<<32) }),
		"a number beyond the ledgers": serialized(func(b *roaring64.Bitmap) { b.Add(math.MaxUint64) }),
	}
}

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s[:len(s)/2*2])
	if err != nil {
		panic(err)
	}
	return b
}

// readMembers resolves the members of a set and proves that it costs no more
// memory than its bytes call for.
func readMembers(t *testing.T, h *benchkit.Handlers, set []byte) ([]*ingestionv1.Member, error) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := &membersStream{ctx: context.Background()}
	err := h.Evaluation.ResolveMembers(&ingestionv1.ResolveMembersRequest{Parent: "projects/1", Roaring: set}, s)
	runtime.ReadMemStats(&after)
	// A part of the bitmap takes about ten times its bytes; a thousand numbers of
	// the set one query.
	if used := after.TotalAlloc - before.TotalAlloc; err != nil && used > 8<<20+64*uint64(len(set)) {
		t.Fatalf("%d bytes made %d bytes of garbage", len(set), used)
	}
	return s.got, err
}

func TestHostileSetsOfUsersAreRefused(t *testing.T) {
	h := newHarness(t)
	handlers := benchkit.HandlersOf(h.svc)
	for name, set := range hostile() {
		if _, err := readMembers(t, handlers, set); violation(err) != "roaring" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzResolveMembers proves that bytes that are no set of users are refused at no
// cost, and that others give the users that are in the set, in order.
func FuzzResolveMembers(f *testing.F) {
	for _, set := range hostile() {
		f.Add(set)
	}
	f.Add(serialized(func(b *roaring64.Bitmap) { b.AddRange(0, 50) }))
	f.Add(serialized(func(b *roaring64.Bitmap) { b.AddMany([]uint64{1, 3, 5, 1 << 33, 1 << 62}) }))
	f.Add(serialized(func(b *roaring64.Bitmap) { b.AddRange(0, 100_000); b.Remove(7) }))
	cfg := ingestion.Default()
	cfg.DataDir = f.TempDir()
	svc, err := ingestion.New(context.Background(), cfg, newRegistry())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = svc.Close(context.Background()) })
	h := benchkit.HandlersOf(svc)
	var body []props
	const users = 30
	for i := range users {
		body = append(body, props{"$token": "tok-1", "$distinct_id": string(rune('a' + i)), "$set": props{"n": i}})
	}
	if _, err := h.Ingestion.IngestRaw(context.Background(), &ingestionv1.IngestRawRequest{Endpoint: engage, Method: "POST", ContentType: "application/json", Body: toJSON(f, body)}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, set []byte) {
		got, err := readMembers(t, h, set)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid || violation(err) != "roaring" {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		bm := roaring64.New()
		if len(set) > 0 {
			if _, err := bm.ReadFrom(bytes.NewReader(set)); err != nil {
				t.Fatalf("taken, but %v", err)
			}
		}
		at := 0
		for no := uint64(1); no <= users; no++ {
			if !bm.Contains(no) {
				continue
			}
			if at == len(got) || got[at].GetUserNo() != no {
				t.Fatalf("user %d of the set is missing: %v", no, got)
			}
			at++
		}
		if at != len(got) {
			t.Fatalf("%d users, want %d", len(got), at)
		}
	})
}
