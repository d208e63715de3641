// Package storetest is the conformance suite of store.Store: every engine runs it.
package storetest

import (
	"bytes"
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/account"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connector"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/project"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/store"
)

// Run runs the suite; open returns an empty store.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for name, f := range map[string]func(*testing.T, store.Store){
		"ProjectsAreFoundByIdTokenAndSecret":      projectsAreFound,
		"ARepeatedCreateReturnsTheFirst":          repeatedCreate,
		"AStaleVersionIsRefusedAndChangesNothing": staleVersion,
		"AccountsBelongToOneProject":              accounts,
		"AConnectorKeepsEveryFieldAndItsPasscode": connectorRoundTrip,
		"ListsComeInPagesByID":                    pages,
	} {
		t.Run(name, func(t *testing.T) { f(t, open(t)) })
	}
}

var now = time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)

func create(t *testing.T, s store.Store, name string) project.Project {
	t.Helper()
	p, secret := project.New(project.Project{DisplayName: name}, now)
	got, created, err := s.CreateProject(context.Background(), p, project.Hash(secret), "")
	if err != nil || !created {
		t.Fatalf("create: %v, created %v", err, created)
	}
	return got
}

func projectsAreFound(t *testing.T, s store.Store) {
	ctx := context.Background()
	p, secret := project.New(project.Project{DisplayName: "shop", CleverTapSources: []string{"CleverTap", "ct"}, ByEventTime: true, PartnerMarkers: map[string][]string{"braze": {"b1"}}}, now)
	got, _, err := s.CreateProject(ctx, p, project.Hash(secret), "")
	if err != nil {
		t.Fatal(err)
	}
	p.ID = got.ID
	if !reflect.DeepEqual(got, p) {
		t.Fatalf("stored %+v, want %+v", got, p)
	}
	for how, find := range map[string]func() (project.Project, error){
		"id":     func() (project.Project, error) { return s.Project(ctx, p.ID) },
		"token":  func() (project.Project, error) { return s.ProjectByToken(ctx, p.Token) },
		"secret": func() (project.Project, error) { return s.ProjectBySecret(ctx, project.Hash(secret)) },
	} {
		if found, err := find(); err != nil || !reflect.DeepEqual(found, p) {
			t.Errorf("by %s: %+v, %v", how, found, err)
		}
	}
	if _, err := s.Project(ctx, p.ID+1); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown id: %v, want NotFound", err)
	}
	if _, err := s.ProjectByToken(ctx, "x"); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown token: %v, want NotFound", err)
	}
}

func repeatedCreate(t *testing.T, s store.Store) {
	ctx := context.Background()
	a, as := project.New(project.Project{DisplayName: "a"}, now)
	b, bs := project.New(project.Project{DisplayName: "b"}, now)
	first, created, err := s.CreateProject(ctx, a, project.Hash(as), "req-1")
	if err != nil || !created {
		t.Fatal(err)
	}
	again, created, err := s.CreateProject(ctx, b, project.Hash(bs), "req-1")
	if err != nil || created || again.ID != first.ID || again.DisplayName != "a" {
		t.Fatalf("repeated create: %+v created %v, %v; want the first", again, created, err)
	}
}

func staleVersion(t *testing.T, s store.Store) {
	ctx := context.Background()
	p := create(t, s, "a")
	changed := p
	changed.DisplayName = "b"
	if _, err := s.UpdateProject(ctx, changed); err != nil {
		t.Fatal(err)
	}
	changed.DisplayName = "c" // still with the old version
	if _, err := s.UpdateProject(ctx, changed); !fault.Is(err, fault.Conflict) {
		t.Fatalf("stale update: %v, want Conflict", err)
	}
	if got, err := s.Project(ctx, p.ID); err != nil || got.DisplayName != "b" || got.Version != p.Version+1 {
		t.Fatalf("after the stale update: %+v, %v", got, err)
	}
}

func accounts(t *testing.T, s store.Store) {
	ctx := context.Background()
	p, other := create(t, s, "a"), create(t, s, "b")
	a, _ := account.New(account.Account{ProjectID: p.ID, DisplayName: "CI robot", Role: 3, ExpireTime: now.Add(time.Hour)}, now)
	stored, err := s.CreateAccount(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.AccountByUsername(ctx, a.Username); err != nil || !reflect.DeepEqual(got, stored) {
		t.Fatalf("by username: %+v, %v; want %+v", got, err, stored)
	}
	if err := s.DeleteAccount(ctx, other.ID, stored.ID); !fault.Is(err, fault.NotFound) {
		t.Fatalf("deleted through another project: %v, want NotFound", err)
	}
	if err := s.DeleteAccount(ctx, p.ID, stored.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AccountByUsername(ctx, a.Username); !fault.Is(err, fault.NotFound) {
		t.Fatalf("after delete: %v, want NotFound", err)
	}
	a.ProjectID = 99
	if _, err := s.CreateAccount(ctx, a); !fault.Is(err, fault.NotFound) {
		t.Fatalf("account of an unknown project: %v, want NotFound", err)
	}
}

func connectorRoundTrip(t *testing.T, s store.Store) {
	ctx := context.Background()
	p := create(t, s, "a")
	c := connector.Connector{
		ProjectID: p.ID, DisplayName: "ct", AccountID: "ACC", Region: "in1", Channel: connector.CustomList, HostURL: "https://h", PartnerURL: "https://p",
		Columns: []connector.Column{{Property: "$email", Field: "Email"}}, AdminEmail: "admin@example.org", IdentityProperty: "id",
		State: connector.Refused, StateReason: "why", CheckTime: now, CreateTime: now, Version: 1,
	}
	sealedFor := int64(0)
	stored, created, err := s.CreateConnector(ctx, c, "req", func(id int64) ([]byte, error) { sealedFor = id; return []byte{1, 2, 3}, nil })
	if err != nil || !created || sealedFor != stored.ID {
		t.Fatalf("create: %v, created %v, sealed for %d", err, created, sealedFor)
	}
	c.ID = stored.ID
	got, box, err := s.Connector(ctx, p.ID, c.ID)
	if err != nil || !reflect.DeepEqual(got, c) || !bytes.Equal(box, []byte{1, 2, 3}) {
		t.Fatalf("got %+v %v %v, want %+v", got, box, err, c)
	}
	if _, _, err := s.Connector(ctx, p.ID+1, c.ID); !fault.Is(err, fault.NotFound) {
		t.Fatalf("through another project: %v, want NotFound", err)
	}
	got.State, got.StateReason = connector.Connected, ""
	if err := s.SetConnectorState(ctx, got); err != nil {
		t.Fatal(err)
	}
	got.DisplayName = "renamed"
	if got, err = s.UpdateConnector(ctx, got, []byte{9}); err != nil || got.State != connector.Connected || got.Version != 2 {
		t.Fatalf("update: %+v, %v", got, err)
	}
	got.Version = 1
	if _, err := s.UpdateConnector(ctx, got, []byte{8}); !fault.Is(err, fault.Conflict) {
		t.Fatalf("stale update: %v, want Conflict", err)
	}
	if _, box, _ := s.Connector(ctx, p.ID, c.ID); !bytes.Equal(box, []byte{9}) {
		t.Fatalf("passcode %v, want the one of the update that was accepted", box)
	}
	if err := s.DeleteConnector(ctx, p.ID, c.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Connector(ctx, p.ID, c.ID); !fault.Is(err, fault.NotFound) {
		t.Fatalf("after delete: %v, want NotFound", err)
	}
}

func pages(t *testing.T, s store.Store) {
	ctx := context.Background()
	var ids []int64
	for _, n := range []string{"a", "b", "c", "d"} {
		ids = append(ids, create(t, s, n).ID)
	}
	page, err := s.Projects(ctx, nil, ids[0], 2)
	if err != nil || len(page) != 2 || page[0].ID != ids[1] || page[1].ID != ids[2] {
		t.Fatalf("page %+v, %v", page, err)
	}
	if some, err := s.Projects(ctx, []int64{ids[3], ids[1]}, 0, 10); err != nil || len(some) != 2 || some[0].ID != ids[1] {
		t.Fatalf("some %+v, %v", some, err)
	}
	if none, err := s.Projects(ctx, []int64{}, 0, 10); err != nil || len(none) != 0 {
		t.Fatalf("of no ids: %+v, %v; want none", none, err)
	}
}
