// The JDBC driver against a cluster: verify-full, prepared statements, batches, COPY, timeouts.

import java.io.StringReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;
import org.postgresql.PGConnection;

public class Client {
    static void check(boolean isTrue, String what) {
        if (!isTrue) {
            throw new AssertionError(what);
        }
    }

    public static void main(String[] arguments) throws Exception {
        var url = "jdbc:postgresql://localhost:" + System.getenv("PGPORT") + "/defaultdb";
        var settings = new Properties();
        settings.setProperty("user", System.getenv("PGUSER"));
        settings.setProperty("password", System.getenv("PGPASSWORD"));
        settings.setProperty("options", "--cluster=" + System.getenv("CLUSTER"));
        settings.setProperty("sslmode", "verify-full");
        settings.setProperty("sslrootcert", System.getenv("PGSSLROOTCERT"));
        try (Connection connection = DriverManager.getConnection(url, settings)) {
            try (Statement statement = connection.createStatement()) {
                statement.execute("create temporary table jdbc (id int, name text)");
            }
            connection.setAutoCommit(false);
            try (PreparedStatement insert = connection.prepareStatement("insert into jdbc values (?, ?)")) {
                for (int number = 0; number < 1000; number++) {
                    insert.setInt(1, number);
                    insert.setString(2, "name " + number);
                    insert.addBatch();
                }
                check(insert.executeBatch().length == 1000, "batch");
            }
            connection.commit();
            // More than five uses: the driver then makes a prepared statement on the server.
            try (PreparedStatement select = connection.prepareStatement("select name from jdbc where id = ?")) {
                for (int number = 0; number < 20; number++) {
                    select.setInt(1, number);
                    try (ResultSet rows = select.executeQuery()) {
                        check(rows.next() && rows.getString(1).equals("name " + number), "prepared");
                    }
                }
            }
            var copy = connection.unwrap(PGConnection.class).getCopyAPI();
            check(copy.copyIn("copy jdbc from stdin", new StringReader("5000\tcopied\n")) == 1, "copy");
            connection.commit();
            connection.setAutoCommit(true);
            try (Statement statement = connection.createStatement()) {
                // The driver sends a cancel, in plaintext, from the session's own address.
                statement.setQueryTimeout(1);
                statement.execute("select pg_sleep(30)");
                throw new AssertionError("not ended");
            } catch (SQLException error) {
                check("57014".equals(error.getSQLState()), "timeout: " + error);
            }
        }
        settings.setProperty("password", "wrong");
        try (Connection connection = DriverManager.getConnection(url, settings)) {
            throw new AssertionError("a wrong password signed in");
        } catch (SQLException error) {
            check("28P01".equals(error.getSQLState()), "wrong password: " + error);
        }
        System.out.println("jdbc ok");
    }
}
