// Package sqlstore is the registry's store on a SQL database.
package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/sqldb"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/account"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connector"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/project"
)

//go:embed migrations
var migrations embed.FS

// Store implements store.Store.
type Store struct{ db *sqldb.DB }

// Open opens and migrates the database dsn names, see sqldb.Open.
func Open(ctx context.Context, dsn string) (*Store, error) {
	db, err := sqldb.Open(ctx, dsn, migrations)
	if err != nil {
		return nil, err
	}
	return &Store{db: db}, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// Times are stored as Unix microseconds, 0 for none.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func notFound(err error, what string, id any) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fault.New(fault.NotFound, strings.ToUpper(strings.ReplaceAll(what, " ", "_"))+"_NOT_FOUND", "%s %v does not exist", what, id)
	}
	return err
}

var errStale = fault.New(fault.Conflict, "ETAG_MISMATCH", "etag: the resource changed meanwhile; read it again")

type scanner interface{ Scan(dest ...any) error }

const projectColumns = "id, display_name, token, identity, match_by_name_only, clevertap_sources, by_event_time, create_time, version, partner_markers"

func scanProject(row scanner) (project.Project, error) {
	var p project.Project
	var sources, markers string
	var created int64
	err := row.Scan(&p.ID, &p.DisplayName, &p.Token, &p.Identity, &p.MatchByNameOnly, &sources, &p.ByEventTime, &created, &p.Version, &markers)
	if err != nil {
		return p, err
	}
	p.CreateTime = fromMicros(created)
	return p, errors.Join(json.Unmarshal([]byte(sources), &p.CleverTapSources), json.Unmarshal([]byte(markers), &p.PartnerMarkers))
}

func jsonText(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// mtuTexts are the MTU settings that are lists, as they are stored.
func mtuTexts(p *project.Project) (sources, markers string, err error) {
	if sources, err = jsonText(p.CleverTapSources); err != nil {
		return "", "", err
	}
	markers, err = jsonText(p.PartnerMarkers)
	return sources, markers, err
}

// CreateProject implements store.Store.
func (s *Store) CreateProject(ctx context.Context, p project.Project, secretHash, requestID string) (stored project.Project, created bool, err error) {
	sources, markers, err := mtuTexts(&p)
	if err != nil {
		return p, false, err
	}
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		if requestID != "" {
			stored, err = scanProject(tx.QueryRowContext(ctx, "SELECT "+projectColumns+" FROM projects WHERE request_id = $1", requestID))
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		created = true
		stored, err = scanProject(tx.QueryRowContext(ctx, `INSERT INTO projects (display_name, token, secret_hash, identity, match_by_name_only, clevertap_sources, by_event_time, request_id, create_time, partner_markers, version)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1) RETURNING `+projectColumns,
			p.DisplayName, p.Token, secretHash, p.Identity, p.MatchByNameOnly, sources, p.ByEventTime, nullable(requestID), micros(p.CreateTime), markers))
		return err
	})
	return stored, created, err
}

func (s *Store) oneProject(ctx context.Context, where string, arg, shown any) (project.Project, error) {
	p, err := scanProject(s.db.Read().QueryRowContext(ctx, "SELECT "+projectColumns+" FROM projects WHERE "+where, arg))
	return p, notFound(err, "project", shown)
}

// Project implements store.Store.
func (s *Store) Project(ctx context.Context, id int64) (project.Project, error) {
	return s.oneProject(ctx, "id = $1", id, id)
}

// ProjectByToken implements store.Store.
func (s *Store) ProjectByToken(ctx context.Context, token string) (project.Project, error) {
	return s.oneProject(ctx, "token = $1", token, "of this token")
}

// ProjectBySecret implements store.Store.
func (s *Store) ProjectBySecret(ctx context.Context, secretHash string) (project.Project, error) {
	return s.oneProject(ctx, "secret_hash = $1", secretHash, "of this secret")
}

// Projects implements store.Store.
func (s *Store) Projects(ctx context.Context, ids []int64, after int64, limit int) ([]project.Project, error) {
	q, args := "SELECT "+projectColumns+" FROM projects WHERE id > $1", []any{after}
	if ids != nil {
		if len(ids) == 0 {
			return nil, nil
		}
		marks := make([]string, len(ids))
		for i, id := range ids {
			args = append(args, id)
			marks[i] = fmt.Sprintf("$%d", len(args))
		}
		q += " AND id IN (" + strings.Join(marks, ",") + ")"
	}
	return list(ctx, s, q+fmt.Sprintf(" ORDER BY id LIMIT %d", limit), scanProject, args...)
}

func list[T any](ctx context.Context, s *Store, q string, scan func(scanner) (T, error), args ...any) ([]T, error) {
	rows, err := s.db.Read().QueryContext(ctx, q, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err has what matters
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// UpdateProject implements store.Store.
func (s *Store) UpdateProject(ctx context.Context, p project.Project) (out project.Project, err error) {
	sources, markers, err := mtuTexts(&p)
	if err != nil {
		return p, err
	}
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		out, err = scanProject(tx.QueryRowContext(ctx, `UPDATE projects SET display_name = $1, identity = $2, match_by_name_only = $3, clevertap_sources = $4, by_event_time = $5, partner_markers = $6, version = version + 1
			WHERE id = $7 AND version = $8 RETURNING `+projectColumns,
			p.DisplayName, p.Identity, p.MatchByNameOnly, sources, p.ByEventTime, markers, p.ID, p.Version))
		if errors.Is(err, sql.ErrNoRows) {
			return errStale
		}
		return err
	})
	return out, err
}

const accountColumns = "id, project_id, display_name, username, secret_hash, role, expire_time, create_time"

func scanAccount(row scanner) (account.Account, error) {
	var a account.Account
	var expire, created int64
	err := row.Scan(&a.ID, &a.ProjectID, &a.DisplayName, &a.Username, &a.SecretHash, &a.Role, &expire, &created)
	a.ExpireTime, a.CreateTime = fromMicros(expire), fromMicros(created)
	return a, err
}

// CreateAccount implements store.Store.
func (s *Store) CreateAccount(ctx context.Context, a account.Account) (out account.Account, err error) {
	if _, err := s.Project(ctx, a.ProjectID); err != nil {
		return a, err
	}
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		out, err = scanAccount(tx.QueryRowContext(ctx, `INSERT INTO service_accounts (project_id, display_name, username, secret_hash, role, expire_time, create_time)
			VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING `+accountColumns,
			a.ProjectID, a.DisplayName, a.Username, a.SecretHash, a.Role, micros(a.ExpireTime), micros(a.CreateTime)))
		return err
	})
	return out, err
}

// AccountByUsername implements store.Store.
func (s *Store) AccountByUsername(ctx context.Context, username string) (account.Account, error) {
	a, err := scanAccount(s.db.Read().QueryRowContext(ctx, "SELECT "+accountColumns+" FROM service_accounts WHERE username = $1", username))
	return a, notFound(err, "service account", "of this name")
}

// Accounts implements store.Store.
func (s *Store) Accounts(ctx context.Context, projectID, after int64, limit int) ([]account.Account, error) {
	return list(ctx, s, fmt.Sprintf("SELECT %s FROM service_accounts WHERE project_id = $1 AND id > $2 ORDER BY id LIMIT %d", accountColumns, limit), scanAccount, projectID, after)
}

// DeleteAccount implements store.Store.
func (s *Store) DeleteAccount(ctx context.Context, projectID, id int64) error {
	return s.delete(ctx, "service_accounts", "service account", projectID, id)
}

func (s *Store) delete(ctx context.Context, table, what string, projectID, id int64) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE project_id = $1 AND id = $2", projectID, id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			return err
		}
		return notFound(sql.ErrNoRows, what, id)
	})
}

const connectorColumns = "id, project_id, display_name, account_id, region, channel, host_url, partner_url, columns, admin_email, identity_property, state, state_reason, check_time, create_time, version"

func scanConnector(row scanner) (connector.Connector, error) {
	return scanConnectorAnd(row)
}

func scanConnectorAnd(row scanner, more ...any) (connector.Connector, error) {
	var c connector.Connector
	var columns string
	var checked, created int64
	err := row.Scan(append([]any{&c.ID, &c.ProjectID, &c.DisplayName, &c.AccountID, &c.Region, &c.Channel, &c.HostURL, &c.PartnerURL, &columns, &c.AdminEmail, &c.IdentityProperty, &c.State, &c.StateReason, &checked, &created, &c.Version}, more...)...)
	if err != nil {
		return c, err
	}
	c.CheckTime, c.CreateTime = fromMicros(checked), fromMicros(created)
	return c, json.Unmarshal([]byte(columns), &c.Columns)
}

// CreateConnector implements store.Store.
func (s *Store) CreateConnector(ctx context.Context, c connector.Connector, requestID string, encrypt func(id int64) ([]byte, error)) (stored connector.Connector, created bool, err error) {
	if _, err := s.Project(ctx, c.ProjectID); err != nil {
		return c, false, err
	}
	columns, err := jsonText(c.Columns)
	if err != nil {
		return c, false, err
	}
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		if requestID != "" {
			stored, err = scanConnector(tx.QueryRowContext(ctx, "SELECT "+connectorColumns+" FROM connectors WHERE project_id = $1 AND request_id = $2", c.ProjectID, requestID))
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		created = true
		stored, err = scanConnector(tx.QueryRowContext(ctx, `INSERT INTO connectors (project_id, display_name, account_id, passcode, region, channel, host_url, partner_url, columns, admin_email, identity_property, state, state_reason, check_time, request_id, create_time, version)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 1) RETURNING `+connectorColumns,
			c.ProjectID, c.DisplayName, c.AccountID, []byte{}, c.Region, c.Channel, c.HostURL, c.PartnerURL, columns, c.AdminEmail, c.IdentityProperty, c.State, c.StateReason, micros(c.CheckTime), nullable(requestID), micros(c.CreateTime)))
		if err != nil {
			return err
		}
		// The ciphertext is bound to the id, which is known only now.
		sealed, err := encrypt(stored.ID)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "UPDATE connectors SET passcode = $1 WHERE id = $2", sealed, stored.ID)
		return err
	})
	return stored, created, err
}

// Connector implements store.Store.
func (s *Store) Connector(ctx context.Context, projectID, id int64) (connector.Connector, []byte, error) {
	var sealed []byte
	c, err := scanConnectorAnd(s.db.Read().QueryRowContext(ctx, "SELECT "+connectorColumns+", passcode FROM connectors WHERE project_id = $1 AND id = $2", projectID, id), &sealed)
	return c, sealed, notFound(err, "connector", id)
}

// Connectors implements store.Store.
func (s *Store) Connectors(ctx context.Context, projectID, after int64, limit int) ([]connector.Connector, error) {
	return list(ctx, s, fmt.Sprintf("SELECT %s FROM connectors WHERE project_id = $1 AND id > $2 ORDER BY id LIMIT %d", connectorColumns, limit), scanConnector, projectID, after)
}

// UpdateConnector implements store.Store.
func (s *Store) UpdateConnector(ctx context.Context, c connector.Connector, passcode []byte) (out connector.Connector, err error) {
	columns, err := jsonText(c.Columns)
	if err != nil {
		return c, err
	}
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		out, err = scanConnector(tx.QueryRowContext(ctx, `UPDATE connectors SET display_name = $1, passcode = $2, region = $3, channel = $4, host_url = $5, partner_url = $6, columns = $7, admin_email = $8, identity_property = $9, state = $10, state_reason = $11, check_time = $12, version = version + 1
			WHERE project_id = $13 AND id = $14 AND version = $15 RETURNING `+connectorColumns,
			c.DisplayName, passcode, c.Region, c.Channel, c.HostURL, c.PartnerURL, columns, c.AdminEmail, c.IdentityProperty, c.State, c.StateReason, micros(c.CheckTime), c.ProjectID, c.ID, c.Version))
		if errors.Is(err, sql.ErrNoRows) {
			return errStale
		}
		return err
	})
	return out, err
}

// SetConnectorState implements store.Store.
func (s *Store) SetConnectorState(ctx context.Context, c connector.Connector) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE connectors SET state = $1, state_reason = $2, check_time = $3 WHERE project_id = $4 AND id = $5", c.State, c.StateReason, micros(c.CheckTime), c.ProjectID, c.ID)
		return err
	})
}

// DeleteConnector implements store.Store.
func (s *Store) DeleteConnector(ctx context.Context, projectID, id int64) error {
	return s.delete(ctx, "connectors", "connector", projectID, id)
}
