package ingestion_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
)

// start is the instant the tests begin at.
var start = time.Date(2026, 3, 31, 12, 0, 0, 0, time.UTC)

// registry is a fixed set of projects: token "tok-<id>", secret "secret-<id>".
type registry struct{ projects map[int64]*ingestion.Project }

func newRegistry() *registry {
	r := &registry{projects: map[int64]*ingestion.Project{}}
	for id, sys := range map[int64]ingestion.IdentitySystem{1: ingestion.Simplified, 2: ingestion.Original, 3: ingestion.Legacy} {
		r.projects[id] = &ingestion.Project{ID: id, Token: fmt.Sprintf("tok-%d", id), Identity: sys}
	}
	return r
}

func (r *registry) ByToken(_ context.Context, token string) (*ingestion.Project, error) {
	for _, p := range r.projects {
		if p.Token == token {
			return p, nil
		}
	}
	return nil, fault.New(fault.NotFound, "PROJECT_NOT_FOUND", "no such project")
}

func (r *registry) ByID(_ context.Context, id int64) (*ingestion.Project, error) {
	if p := r.projects[id]; p != nil {
		return p, nil
	}
	return nil, fault.New(fault.NotFound, "PROJECT_NOT_FOUND", "no such project")
}

func (r *registry) Authenticate(_ context.Context, c ingestion.Credential) (*ingestion.Project, error) {
	for id, p := range r.projects {
		if c.Secret == "" && (c.Username == fmt.Sprintf("secret-%d", id) || c.Username == p.Token) {
			return p, nil
		}
		if c.Username == "robot" && c.Secret == "hush" && c.ProjectID == fmt.Sprint(id) {
			return p, nil
		}
	}
	switch {
	case c.Username == "robot" && c.Secret == "hush" && c.ProjectID == "":
		return nil, fault.New(fault.Denied, "PROJECT_ID_REQUIRED", "project_id is required")
	case c.Username == "robot" && c.Secret == "hush":
		return nil, fault.New(fault.Denied, "WRONG_PROJECT", "project_id is another project's")
	}
	return nil, fault.New(fault.Unauthenticated, "CREDENTIAL_INVALID", "invalid credentials")
}

// harness is a running service with clients over an in-memory connection.
type harness struct {
	t    *testing.T
	dir  string
	now  atomic.Int64
	svc  *ingestion.Service
	srv  *grpc.Server
	conn *grpc.ClientConn
	in   ingestionv1.IngestionServiceClient
	eval ingestionv1.EvaluationServiceClient
	data ingestionv1.DataServiceClient
	use  ingestionv1.UsageServiceClient
	who  ingestionv1.IdentityServiceClient
	cfg  ingestion.Config
	reg  *registry
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{t: t, dir: t.TempDir(), reg: newRegistry()}
	h.now.Store(start.UnixMilli())
	h.cfg = ingestion.Default()
	h.cfg.DataDir = h.dir
	h.open()
	t.Cleanup(h.close)
	return h
}

func (h *harness) clock() time.Time { return time.UnixMilli(h.now.Load()).UTC() }

func (h *harness) open() {
	h.t.Helper()
	svc, err := ingestion.New(context.Background(), h.cfg, h.reg, ingestion.WithClock(h.clock))
	if err != nil {
		h.t.Fatal(err)
	}
	h.svc = svc
	h.srv = grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	svc.Register(h.srv)
	lis := bufconn.Listen(1 << 20)
	go func() { _ = h.srv.Serve(lis) }()
	h.conn, err = grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		h.t.Fatal(err)
	}
	h.in, h.eval = ingestionv1.NewIngestionServiceClient(h.conn), ingestionv1.NewEvaluationServiceClient(h.conn)
	h.data, h.use, h.who = ingestionv1.NewDataServiceClient(h.conn), ingestionv1.NewUsageServiceClient(h.conn), ingestionv1.NewIdentityServiceClient(h.conn)
}

func (h *harness) close() {
	h.t.Helper()
	_ = h.conn.Close()
	h.srv.Stop()
	if err := h.svc.Close(context.Background()); err != nil {
		h.t.Error(err)
	}
}

func (h *harness) restart() { h.close(); h.open() }

// raw sends one request of the wire.
func (h *harness) raw(req *ingestionv1.IngestRawRequest) *ingestionv1.IngestRawResponse {
	h.t.Helper()
	if req.Method == "" {
		req.Method = "POST"
	}
	resp, err := h.in.IngestRaw(context.Background(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp
}

func basic(user, pass string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))
}

type props = map[string]any

func ev(name string, at time.Time, id, insert string, more props) props {
	p := props{"time": at.Unix()}
	if id != "" {
		p["distinct_id"] = id
	}
	if insert != "" {
		p["$insert_id"] = insert
	}
	for k, v := range more {
		p[k] = v
	}
	return props{"event": name, "properties": p}
}

func toJSON(t testing.TB, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		if t == nil {
			panic(err)
		}
		t.Helper()
		t.Fatal(err)
	}
	return b
}

// importStrict sends events to /import?strict=1 of a project and wants them all stored.
func (h *harness) importStrict(projectID int64, events ...props) {
	h.t.Helper()
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: ingestionv1.IngestRawRequest_ENDPOINT_IMPORT, ContentType: "application/json", RawQuery: "strict=1", Authorization: basic(fmt.Sprintf("secret-%d", projectID), ""), Body: toJSON(h.t, events)})
	if want := fmt.Sprintf(`{"code":200,"num_records_imported":%d,"status":"OK"}`, len(events)); string(r.GetBody()) != want {
		h.t.Fatalf("import answered %d %s, want %s", r.GetStatus(), r.GetBody(), want)
	}
}

// engage sends profile updates to a project and wants success.
func (h *harness) engage(projectID int64, updates ...props) {
	h.t.Helper()
	for _, u := range updates {
		u["$token"] = fmt.Sprintf("tok-%d", projectID)
	}
	r := h.raw(&ingestionv1.IngestRawRequest{Endpoint: ingestionv1.IngestRawRequest_ENDPOINT_ENGAGE, ContentType: "application/json", Body: toJSON(h.t, updates)})
	if r.GetStatus() != 200 || string(r.GetBody()) != "1" {
		h.t.Fatalf("engage answered %d %s", r.GetStatus(), r.GetBody())
	}
}

func set(id string, p props) props { return props{"$distinct_id": id, "$set": p} }

func (h *harness) export(projectID int64) []*ingestionv1.ExportedEvent {
	h.t.Helper()
	stream, err := h.data.ExportEvents(context.Background(), &ingestionv1.ExportEventsRequest{Parent: fmt.Sprintf("projects/%d", projectID), FromDate: "2026-01-01", ToDate: "2026-12-31"})
	if err != nil {
		h.t.Fatal(err)
	}
	var out []*ingestionv1.ExportedEvent
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		out = append(out, m.GetEvents()...)
	}
}

type evaluation struct {
	leaves     []*roaring64.Bitmap
	identified *roaring64.Bitmap
	mark       *ingestionv1.Watermark
}

func (h *harness) evaluate(projectID int64, leaves ...*ingestionv1.Leaf) evaluation {
	h.t.Helper()
	stream, err := h.eval.EvaluateLeaves(context.Background(), &ingestionv1.EvaluateLeavesRequest{Parent: fmt.Sprintf("projects/%d", projectID), Leaves: leaves, AsOf: timestamppb.New(h.clock())})
	if err != nil {
		h.t.Fatal(err)
	}
	var out evaluation
	decode := func(s *ingestionv1.UserSet) *roaring64.Bitmap {
		bm := roaring64.New()
		if err := bm.UnmarshalBinary(s.GetRoaring()); err != nil {
			h.t.Fatal(err)
		}
		if bm.GetCardinality() != s.GetCount() {
			h.t.Fatalf("count %d, bitmap has %d", s.GetCount(), bm.GetCardinality())
		}
		return bm
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		switch {
		case m.GetLeaf() != nil:
			out.leaves = append(out.leaves, decode(m.GetLeaf().GetUsers()))
		case m.GetIdentified() != nil:
			out.identified = decode(m.GetIdentified())
		default:
			out.mark = m.GetWatermark()
		}
	}
}

// ids are the canonical ids of a set of users, in order of user number.
func (h *harness) ids(projectID int64, bm *roaring64.Bitmap) string {
	h.t.Helper()
	var out []string
	for _, m := range h.members(projectID, bm) {
		out = append(out, m.GetDistinctId())
	}
	return strings.Join(out, " ")
}

func (h *harness) members(projectID int64, bm *roaring64.Bitmap, columns ...string) []*ingestionv1.Member {
	h.t.Helper()
	b, err := bm.ToBytes()
	if err != nil {
		h.t.Fatal(err)
	}
	stream, err := h.eval.ResolveMembers(context.Background(), &ingestionv1.ResolveMembersRequest{Parent: fmt.Sprintf("projects/%d", projectID), Roaring: b, Columns: columns})
	if err != nil {
		h.t.Fatal(err)
	}
	var out []*ingestionv1.Member
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		out = append(out, m.GetMembers()...)
	}
}

func did(n float64, events ...string) *ingestionv1.Leaf {
	return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Behavior{Behavior: &typev1.BehaviorLeaf{Events: events, Threshold: &n}}}
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func form(kv ...string) []byte {
	v := url.Values{}
	for i := 0; i < len(kv); i += 2 {
		v.Set(kv[i], kv[i+1])
	}
	return []byte(v.Encode())
}
