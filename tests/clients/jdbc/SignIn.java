// The JDBC driver signs in with a password, a token or a certificate, and says who it is.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Properties;

public class SignIn {
    public static void main(String[] arguments) {
        var url = "jdbc:postgresql://localhost:" + System.getenv("PGPORT") + "/defaultdb";
        var settings = new Properties();
        settings.setProperty("user", System.getenv("PGUSER"));
        settings.setProperty("options", System.getenv("PGOPTIONS"));
        settings.setProperty("sslmode", "verify-full");
        settings.setProperty("sslrootcert", System.getenv("PGSSLROOTCERT"));
        // The driver reads keys in PKCS #8 and DER.
        for (var pair : new String[][] {
                {"password", "PGPASSWORD"}, {"sslcert", "PGSSLCERT"}, {"sslkey", "PGSSLKEY_DER"}}) {
            var value = System.getenv(pair[1]);
            if (value != null && !value.isEmpty()) {
                settings.setProperty(pair[0], value);
            }
        }
        try (Connection connection = DriverManager.getConnection(url, settings);
                var rows = connection.createStatement().executeQuery("select session_user")) {
            rows.next();
            System.out.println("signed in as " + rows.getString(1));
        } catch (SQLException error) {
            System.err.println(error.getSQLState() + " " + error.getMessage());
            System.exit(1);
        }
    }
}
